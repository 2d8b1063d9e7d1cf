//! Opens a GGUF file and checks every length and offset in it against the length of the file. Reads no tensor data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Mutex;

use super::source::{Scalar, Source};
use super::tensor::{TensorInfo, TensorType};
use super::value::Value;
use super::{Gguf, wrong_type};
use crate::error::{Error, Result};
use crate::files;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const VERSION: u32 = 3;
pub(super) const ALIGNMENT: u64 = 32;
/// ggml's limits: GGML_MAX_NAME with its terminator, GGML_MAX_DIMS.
pub(super) const NAME_BYTES: usize = 63;
const DIMENSIONS: u32 = 4;

/// Metadata of a model that is split over several files: the number of this one from 0, the number of files, and the
/// number of tensors in all of them.
const SPLIT_NUMBER: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";
/// The keys that are only true of a file that is part of a split model.
pub(super) const SPLIT_KEYS: [&str; 3] = [SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS];

impl Gguf {
    /// Opens a file and reads its metadata and tensor table; of a model that is split over several files, the first one
    /// and with it the others beside it (`NAME-00001-of-00003.gguf`). Errors if a file is missing, not GGUF, of another
    /// version, corrupt, or shorter than its table says.
    pub fn open(path: &Path) -> Result<Gguf> {
        let mut all = open_one(path)?;
        let whole = |all: &mut Gguf| -> Result<()> {
            let count = all.opt_u16(SPLIT_COUNT)?.unwrap_or(0);
            if count > 1 {
                all.add_parts(count)?;
            }
            Ok(())
        };
        whole(&mut all).map_err(|e| e.context(format!("opening {}", path.display())))?;
        Ok(all)
    }

    /// Adds the tensors of the other files of a split model.
    fn add_parts(&mut self, count: u16) -> Result<()> {
        let number = self.opt_u16(SPLIT_NUMBER)?.unwrap_or(0);
        if number != 0 {
            return Err(Error::model(format!(
                "it is part {} of a model split into {count} files, expected the first of them",
                u32::from(number) + 1
            )));
        }
        let name = |part: u16| format!("-{part:05}-of-{count:05}.gguf");
        let first = name(1);
        let Some(prefix) = self.path.to_str().and_then(|path| path.strip_suffix(&first)).map(str::to_owned) else {
            return Err(Error::model(format!(
                "it is the first of {count} files of a split model, and the others are found by its name only if that \
                 ends with {first}"
            )));
        };
        for part in 1..count {
            let other = open_one(Path::new(&format!("{prefix}{}", name(part + 1))))?;
            let (found, of) = (other.opt_u16(SPLIT_NUMBER)?, other.opt_u16(SPLIT_COUNT)?);
            if (found, of) != (Some(part), Some(count)) {
                return Err(Error::model(format!(
                    "{} is not part {} of {count} of this model: its {SPLIT_NUMBER} is {found:?} and its {SPLIT_COUNT} \
                     {of:?}",
                    other.path.display(),
                    part + 1
                )));
            }
            for mut info in other.tensors {
                info.file = self.files.len();
                if self.by_name.insert(info.name.clone(), self.tensors.len()).is_some() {
                    return Err(Error::model(format!("tensor {} is there twice", info.name)));
                }
                self.tensors.push(info);
            }
            self.files.extend(other.files);
        }
        match self.get(SPLIT_TENSORS) {
            Some(Value::I32(n)) if usize::try_from(*n) == Ok(self.tensors.len()) => Ok(()),
            other => Err(Error::model(format!(
                "its files have {} tensors together, and {SPLIT_TENSORS} is {other:?}: parts of different models?",
                self.tensors.len()
            ))),
        }
    }
}

/// One file.
fn open_one(path: &Path) -> Result<Gguf> {
    let file = files::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::model("there is no such file"),
        ErrorKind::InvalidInput => Error::model(e.to_string()),
        _ => Error::from(e),
    });
    file.and_then(|file| parse(path, file)).map_err(|e| e.context(format!("opening {}", path.display())))
}

fn parse(path: &Path, file: File) -> Result<Gguf> {
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(Error::model("it is not a regular file"));
    }
    let length = about.len();
    let mut source = Source::new(BufReader::with_capacity(1 << 18, &file), length);
    if length < 4 || &source.array::<4>()? != MAGIC {
        return Err(Error::model("it is not a GGUF file (its first bytes are not `GGUF`)"));
    }
    let version = u32::decode(&mut source)?;
    if version & 0xffff == 0 {
        return Err(Error::unsupported("it is a big-endian GGUF file, expected little-endian"));
    }
    if version != 2 && version != VERSION {
        return Err(Error::unsupported(format!("it is GGUF version {version}, expected 2 or {VERSION}")));
    }
    let (tensor_count, value_count) = (u64::decode(&mut source)?, u64::decode(&mut source)?);
    let metadata = read_metadata(&mut source, value_count)?;
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::U32(n)) if n.is_power_of_two() => u64::from(*n),
        Some(Value::U32(n)) => return Err(Error::model(format!("its alignment is {n}, expected a power of two"))),
        Some(other) => return Err(wrong_type("general.alignment", other, "u32")),
    };
    let mut tensors = Vec::new();
    let mut by_name = BTreeMap::new();
    let mut data_end = Some(0);
    for index in 0..tensor_count {
        let info = read_tensor_info(&mut source).map_err(|e| e.context(format!("tensor {index}")))?;
        if Some(info.offset) != data_end {
            return Err(Error::model(format!("tensor {} does not begin where the one before it ends", info.name)));
        }
        data_end = info.offset.checked_add(info.bytes).and_then(|end| end.checked_next_multiple_of(alignment));
        if by_name.insert(info.name.clone(), tensors.len()).is_some() {
            return Err(Error::model(format!("tensor {} is there twice", info.name)));
        }
        tensors.push(info);
    }
    let data = source.position().next_multiple_of(alignment);
    for info in &mut tensors {
        let end = data.checked_add(info.offset).and_then(|start| start.checked_add(info.bytes));
        if end.is_none_or(|end| end > length) {
            return Err(Error::model(format!(
                "the file is truncated: tensor {} ends beyond its {length} bytes",
                info.name
            )));
        }
        info.offset += data;
    }
    drop(source);
    Ok(Gguf { path: path.to_owned(), files: vec![(path.to_owned(), Mutex::new(file))], metadata, tensors, by_name })
}

fn read_metadata<R: Read>(source: &mut Source<R>, count: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        let key = name(source).map_err(|e| e.context(format!("metadata key {index}")))?;
        let value = u32::decode(source).and_then(|id| Value::decode(id, source));
        let value = value.map_err(|e| e.context(format!("metadata value of {key:.80}")))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Error::model(format!("metadata key {key:.80} is there twice")));
        }
    }
    Ok(metadata)
}

/// A name. Refuses NUL, which ends names in C: llama.cpp would read another name than we do.
fn name<R: Read>(source: &mut Source<R>) -> Result<String> {
    let name = String::decode(source)?;
    if name.contains('\0') {
        return Err(Error::model(format!("the name {name:.80?} has a NUL in it")));
    }
    Ok(name)
}

/// Reads a table entry; its `offset` is still relative to the data section.
fn read_tensor_info<R: Read>(source: &mut Source<R>) -> Result<TensorInfo> {
    let name = name(source)?;
    if name.is_empty() || name.len() > NAME_BYTES {
        return Err(Error::model(format!("its name has {} bytes, expected 1 to {NAME_BYTES}", name.len())));
    }
    let dimensions = u32::decode(source)?;
    if !(1..=DIMENSIONS).contains(&dimensions) {
        return Err(Error::model(format!("{name} has {dimensions} dimensions, expected 1 to {DIMENSIONS}")));
    }
    let mut sizes: Vec<u64> = source.many(u64::from(dimensions))?;
    let id = u32::decode(source)?;
    let offset = u64::decode(source)?;
    let kind = TensorType::from_id(id).ok_or_else(|| Error::model(format!("{name} has unknown type {id}")))?;
    let width = sizes.first().copied().unwrap_or(1);
    let rows = sizes.iter().skip(1).try_fold(1u64, |all, &n| all.checked_mul(n));
    let bytes = rows.and_then(|rows| kind.bytes(rows, width)).filter(|&n| n > 0 && n <= i64::MAX as u64);
    let bytes =
        bytes.ok_or_else(|| Error::model(format!("{name} has shape {sizes:?}, which {} can't hold", kind.name())))?;
    sizes.reverse();
    let shape = sizes.into_iter().map(|n| n as usize).collect();
    Ok(TensorInfo { name, shape, kind, file: 0, offset, bytes })
}
