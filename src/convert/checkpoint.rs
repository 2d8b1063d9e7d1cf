//! The weights of a Hugging Face folder, in one file of safetensors or in several. Reads one tensor at a time, where
//! the file's header says that it lies; never writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{object, shown};
use crate::error::{Error, Result};
use crate::files;

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest header, in bytes: the limit of the format's own reader.
const HEADER: u64 = 100_000_000;
/// Most files of one model.
const FILES: usize = 1000;
/// Bytes that are decoded at once.
const CHUNK: usize = 1 << 20;

/// Where the weights of a folder lie.
pub(super) struct Checkpoint {
    /// The file that tells which tensors there are.
    table: PathBuf,
    tensors: BTreeMap<String, Stored>,
}

struct Stored {
    file: PathBuf,
    dtype: String,
    /// `None` for what is never a weight.
    numbers: Option<Numbers>,
    shape: Vec<usize>,
    start: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum Numbers {
    F32,
    F16,
    Bf16,
}

/// A tensor as the header of a file tells it.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

impl Checkpoint {
    /// # Errors
    /// `Model` naming the file, and the tensor where it is about one; `Unsupported` for weights in another form.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (whole, index) = (folder.join(WHOLE), folder.join(INDEX));
        if whole.exists() {
            return Ok(Self { tensors: header(&whole)?, table: whole });
        }
        if index.exists() {
            return Ok(Self { tensors: parts(folder, &index)?, table: index });
        }
        let names = fs::read_dir(folder).map_err(|e| Error::model(format!("{}: {e}", folder.display())))?;
        let names = names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let pickled = names.into_iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
        let folder = folder.display();
        Err(match pickled {
            Some(name) => Error::unsupported(format!(
                "{folder} has its weights as a Python pickle, {name}; expected {WHOLE}, which save_pretrained of \
                 transformers writes"
            )),
            None => Error::model(format!("{folder} has neither {WHOLE} nor {INDEX}")),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// An error about a tensor, with the file that it is in.
    pub(super) fn about(&self, name: &str, why: &str) -> Error {
        let file = self.tensors.get(name).map_or(&self.table, |stored| &stored.file);
        Error::model(format!("{}: tensor {name} {why}", file.display()))
    }

    /// Checks that a tensor is there with this shape, in numbers that are read here.
    pub(super) fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        match self.tensors.get(name) {
            None => Err(self.about(name, &format!("is missing, expected shape {shape:?}"))),
            Some(found) if found.shape != shape => {
                Err(self.about(name, &format!("has shape {:?}, expected {shape:?}", found.shape)))
            }
            Some(Stored { numbers: None, dtype, .. }) => {
                Err(self.about(name, &format!("is of {dtype:.20}, expected F32, F16 or BF16")))
            }
            Some(_) => Ok(()),
        }
    }

    /// The numbers of a tensor, rows first.
    pub(super) fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Some((stored, numbers)) = self.tensors.get(name).and_then(|stored| Some((stored, stored.numbers?))) else {
            return Err(self.about(name, "is missing"));
        };
        stored.read(numbers).map_err(|e| self.about(name, &format!("can't be read: {e}")))
    }
}

impl Stored {
    fn read(&self, numbers: Numbers) -> io::Result<Vec<f32>> {
        let mut file = files::open(&self.file)?;
        file.seek(SeekFrom::Start(self.start))?;
        let mut values = Vec::with_capacity(self.bytes as usize / numbers.bytes());
        let mut chunk = vec![0; CHUNK.min(self.bytes as usize)];
        let mut left = self.bytes as usize;
        while left > 0 {
            let bytes = &mut chunk[..left.min(CHUNK)];
            file.read_exact(bytes)?;
            numbers.decode(bytes, &mut values);
            left -= bytes.len();
        }
        Ok(values)
    }
}

impl Numbers {
    fn named(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        let (pairs, _) = bytes.as_chunks::<2>();
        match self {
            Self::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four))),
            Self::F16 => values.extend(pairs.iter().map(|two| half::f16::from_le_bytes(*two).to_f32())),
            Self::Bf16 => values.extend(pairs.iter().map(|two| half::bf16::from_le_bytes(*two).to_f32())),
        }
    }
}

/// The tensors of one file.
fn header(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let at = |why: String| Error::model(format!("{}: {why}", path.display()));
    let read = || -> io::Result<(Vec<u8>, u64)> {
        let mut file = files::open(path)?;
        let all = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let data = all.checked_sub(8).and_then(|rest| rest.checked_sub(length)).filter(|_| length <= HEADER);
        let data = data.ok_or_else(|| io::Error::other(format!("its header of {length} bytes is not in it")))?;
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        Ok((header, data))
    };
    let (header, data) = read().map_err(|e| at(format!("it is no file of safetensors: {e}")))?;
    let mut table: Map<String, Value> = serde_json::from_slice(&header)
        .map_err(|e| at(format!("it is no file of safetensors: its header is not an object of JSON: {e}")))?;
    table.remove("__metadata__");
    let first = 8 + header.len() as u64;
    let mut tensors = BTreeMap::new();
    for (name, entry) in table {
        let fault = |why: String| at(format!("tensor {name:.100} {why}"));
        let Entry { dtype, shape, data_offsets: [start, end] } =
            serde_json::from_value(entry).map_err(|e| fault(format!("is described wrongly: {e}")))?;
        let numbers = Numbers::named(&dtype);
        let wanted = numbers.and_then(|n| shape.iter().try_fold(n.bytes(), |all, size| all.checked_mul(*size)));
        let right = start <= end && end <= data && (numbers.is_none() || wanted.map(|n| n as u64) == Some(end - start));
        if !right {
            return Err(fault(format!("of {dtype:.20} {shape:?} is said to lie at {start} to {end} of {data} bytes")));
        }
        let stored = Stored { file: path.to_owned(), dtype, numbers, shape, start: first + start, bytes: end - start };
        tensors.insert(name, stored);
    }
    Ok(tensors)
}

/// The tensors of all files that an index names, each in the file that it is said to be in.
fn parts(folder: &Path, index: &Path) -> Result<BTreeMap<String, Stored>> {
    let at = |why: String| Error::model(format!("{}: {why}", index.display()));
    let places = match object(index)?.remove("weight_map") {
        Some(Value::Object(places)) => places,
        other => return Err(at(format!("weight_map is {}, expected an object", shown(other.as_ref())))),
    };
    let mut files = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for (name, place) in places {
        let file = place.as_str().filter(|file| Path::new(file).file_name().is_some_and(|name| name == *file));
        let file = file.ok_or_else(|| at(format!("tensor {name:.100} is in {place:.100}, expected a file's name")))?;
        if !files.contains_key(file) {
            if files.len() == FILES {
                return Err(at(format!("it names more than {FILES} files")));
            }
            files.insert(file.to_owned(), header(&folder.join(file))?);
        }
        let stored = files.get_mut(file).and_then(|of| of.remove(&name));
        let stored = stored.ok_or_else(|| at(format!("tensor {name:.100} is not in {file:.100}, which it names")))?;
        tensors.insert(name, stored);
    }
    Ok(tensors)
}
