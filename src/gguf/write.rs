//! Writes GGUF files (version 3, alignment 32): adapters, merged models, test models. A file appears whole or not at
//! all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};

use super::Gguf;
use super::open::{ALIGNMENT, MAGIC, NAME_BYTES, SPLIT_KEYS, VERSION};
use super::source::Scalar;
use super::tensor::TensorType;
use super::value::Value;
use crate::error::{Error, Result};

/// A file to be written. Each tensor's data is encoded or copied while writing.
#[derive(Default)]
pub struct Writer<'a> {
    metadata: BTreeMap<String, Value>,
    tensors: Vec<Entry<'a>>,
}

struct Entry<'a> {
    name: String,
    /// Rows first.
    shape: Vec<usize>,
    kind: TensorType,
    bytes: u64,
    data: Data<'a>,
}

enum Data<'a> {
    Encode(Tensor, GgmlDType),
    Make(Box<dyn Fn() -> Result<Tensor> + 'a>, GgmlDType),
    Copy(&'a Gguf),
}

impl<'a> Writer<'a> {
    /// A file without metadata and tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata value, replacing an earlier one of the same key.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Copies all metadata of another file.
    pub fn copy_metadata(&mut self, from: &Gguf) -> &mut Self {
        self.metadata.extend(from.metadata().iter().map(|(key, value)| (key.clone(), value.clone())));
        // The copy uses the writer's own alignment, and is one file.
        self.metadata.remove("general.alignment");
        SPLIT_KEYS.iter().for_each(|key| drop(self.metadata.remove(*key)));
        self
    }

    /// Adds a tensor as f32. Errors if the name is taken or too long, or the tensor is empty.
    pub fn tensor(&mut self, name: &str, data: &Tensor) -> Result<&mut Self> {
        self.tensor_as(name, data, GgmlDType::F32)
    }

    /// Adds a tensor in another number format; quantized ones need rows of whole blocks.
    pub fn tensor_as(&mut self, name: &str, data: &Tensor, format: GgmlDType) -> Result<&mut Self> {
        let shape = data.dims().to_vec();
        self.add(name, shape, format.into(), Data::Encode(data.clone(), format))
    }

    /// Adds a tensor that is computed during the writing, which fails if the tensor's shape is not `shape`.
    pub fn tensor_made(
        &mut self,
        name: &str,
        shape: &[usize],
        format: GgmlDType,
        make: impl Fn() -> Result<Tensor> + 'a,
    ) -> Result<&mut Self> {
        self.add(name, shape.to_vec(), format.into(), Data::Make(Box::new(make), format))
    }

    /// Adds a tensor of another file without decoding its data.
    pub fn copy_tensor(&mut self, from: &'a Gguf, name: &str) -> Result<&mut Self> {
        let info = from.required(name)?;
        self.add(name, info.shape.clone(), info.kind, Data::Copy(from))
    }

    fn add(&mut self, name: &str, shape: Vec<usize>, kind: TensorType, data: Data<'a>) -> Result<&mut Self> {
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(Error::arg(format!("tensor name {name:.80} is too long, the limit is {NAME_BYTES} bytes")));
        }
        if self.tensors.iter().any(|entry| entry.name == name) {
            return Err(Error::arg(format!("tensor {name} is there already")));
        }
        let width = shape.last().copied().unwrap_or(1) as u64;
        let rows = shape.iter().rev().skip(1).product::<usize>() as u64;
        let bytes = kind.bytes(rows, width).filter(|&n| n > 0 && (1..=4).contains(&shape.len()));
        let bytes = bytes.ok_or_else(|| {
            Error::arg(format!("tensor {name} has shape {shape:?}, which {} can't hold", kind.name()))
        })?;
        self.tensors.push(Entry { name: name.to_owned(), shape, kind, bytes, data });
        Ok(self)
    }

    /// Writes the file under a temporary name, syncs it, and renames it to `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.partial", std::process::id()));
        let beside = Path::new(&beside);
        let written = self.write_new(beside).and_then(|()| {
            fs::rename(beside, path)?;
            sync_folder(path)
        });
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(beside);
        }
        written.map_err(|e| e.context(format!("writing {}", path.display())))
    }

    fn write_new(&self, path: &Path) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, File::create(path)?);
        let header = self.header();
        out.write_all(&header)?;
        pad(&mut out, header.len() as u64)?;
        for entry in &self.tensors {
            entry.write(&mut out).map_err(|e| e.context(format!("tensor {}", entry.name)))?;
            pad(&mut out, entry.bytes)?;
        }
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        VERSION.encode(&mut out);
        (self.tensors.len() as u64).encode(&mut out);
        (self.metadata.len() as u64).encode(&mut out);
        for (key, value) in &self.metadata {
            key.encode(&mut out);
            value.type_id().encode(&mut out);
            value.encode(&mut out);
        }
        let mut offset = 0u64;
        for entry in &self.tensors {
            entry.name.encode(&mut out);
            (entry.shape.len() as u32).encode(&mut out);
            entry.shape.iter().rev().for_each(|&size| (size as u64).encode(&mut out));
            entry.kind.0.encode(&mut out);
            offset.encode(&mut out);
            offset += entry.bytes.next_multiple_of(ALIGNMENT);
        }
        out
    }
}

impl Entry<'_> {
    fn write(&self, out: &mut impl Write) -> Result<()> {
        match &self.data {
            Data::Copy(from) => out.write_all(&from.raw(&self.name)?)?,
            Data::Encode(tensor, format) => encode(tensor, *format, out)?,
            Data::Make(make, format) => {
                let tensor = make()?;
                if tensor.dims() != self.shape {
                    return Err(Error::arg(format!("it has shape {:?}, {:?} was said", tensor.dims(), self.shape)));
                }
                encode(&tensor, *format, out)?;
            }
        }
        Ok(())
    }
}

fn encode(tensor: &Tensor, format: GgmlDType, out: &mut impl Write) -> Result<()> {
    let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
    match format {
        GgmlDType::F32 => {
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            out.write_all(bytemuck::cast_slice(&values))?;
        }
        _ => out.write_all(&QTensor::quantize(&tensor, format)?.data()?)?,
    }
    Ok(())
}

fn pad(out: &mut impl Write, written: u64) -> Result<()> {
    let missing = written.next_multiple_of(ALIGNMENT) - written;
    Ok(out.write_all(&[0; ALIGNMENT as usize][..missing as usize])?)
}

/// Makes a rename durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(folder)?.sync_all()?)
}
