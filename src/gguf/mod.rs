//! GGUF files: bounded reading, typed metadata, tensor data, writing. Knows nothing of architectures; maps nothing.

mod open;
mod source;
mod tensor;
mod value;
mod write;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::lock::lock;
pub use tensor::{TensorInfo, TensorType};
pub use value::{Array, Value};
pub use write::Writer;
pub(crate) use write::sync_folder;

/// Most layers of a model: llama.cpp's limit (LLAMA_MAX_LAYERS).
pub(crate) const MOST_LAYERS: u32 = 512;

/// An open GGUF file, or all files of a split model: metadata and tensor table in memory, data on disk.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    /// Its files and their paths, the first one first. Locked, since reading moves a file's position.
    files: Vec<(PathBuf, Mutex<File>)>,
    metadata: BTreeMap<String, Value>,
    /// In file order.
    tensors: Vec<TensorInfo>,
    by_name: BTreeMap<String, usize>,
}

macro_rules! accessors {
    ($(
        $(#[$doc:meta])*
        $name:ident, $optional:ident, $variant:ident($bound:ident) => $ty:ty, $value:expr, $word:literal;
    )*) => {
        $($(#[$doc])*
        /// Errors if the key is missing or its value is of another type.
        pub fn $name(&self, key: &str) -> Result<$ty> {
            self.$optional(key)?.ok_or_else(|| Error::model(format!("metadata key {key} is missing")))
        }

        $(#[$doc])*
        /// `None` if the key is missing; errors if its value is of another type.
        pub fn $optional(&self, key: &str) -> Result<Option<$ty>> {
            match self.metadata.get(key) {
                None => Ok(None),
                Some(Value::$variant($bound)) => Ok(Some($value)),
                Some(other) => Err(wrong_type(key, other, $word)),
            }
        })*
    };
}

macro_rules! array_accessors {
    ($($(#[$doc:meta])* $name:ident, $variant:ident => $ty:ty, $word:literal;)*) => {
        $($(#[$doc])*
        /// `None` if the key is missing; errors if its value is of another type.
        pub fn $name(&self, key: &str) -> Result<Option<&[$ty]>> {
            match self.metadata.get(key) {
                None => Ok(None),
                Some(Value::Array(Array::$variant(items))) => Ok(Some(items)),
                Some(other) => Err(wrong_type(key, other, $word)),
            }
        })*
    };
}

impl Gguf {
    /// The file's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The paths of all its files: more than one for a split model.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Any metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    accessors! {
        /// A whole number; GGUF's numbers of layers, heads and the like are u32.
        u32, opt_u32, U32(v) => u32, *v, "u32";
        /// A small whole number, as in `split.count`.
        u16, opt_u16, U16(v) => u16, *v, "u16";
        /// A 32-bit float.
        f32, opt_f32, F32(v) => f32, *v, "f32";
        /// A truth value.
        bool, opt_bool, Bool(v) => bool, *v, "bool";
        /// A text.
        str, opt_str, String(v) => &str, v.as_str(), "string";
    }

    array_accessors! {
        /// Texts, as in `tokenizer.ggml.tokens`.
        opt_strings, String => String, "array of string";
        /// Signed numbers, as in `tokenizer.ggml.token_type`.
        opt_i32s, I32 => i32, "array of i32";
        /// 32-bit floats, as in `tokenizer.ggml.scores`.
        opt_f32s, F32 => f32, "array of f32";
    }

    /// Its open files, in the order of [`Self::paths`], to be mapped.
    ///
    /// # Errors
    /// `Io` if a handle can't be had.
    pub(crate) fn handles(&self) -> Result<Vec<File>> {
        self.files.iter().map(|(_, file)| Ok(lock(file).try_clone()?)).collect()
    }

    /// The tensor table, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// One entry of the table.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&i| self.tensors.get(i))
    }

    fn required(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| Error::model(format!("tensor {name} is missing")))
    }

    /// The data of a tensor, undecoded.
    pub fn raw(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.required(name)?;
        let mut bytes = vec![0; info.bytes as usize];
        self.read_into(info, &mut bytes)?;
        Ok(bytes)
    }

    /// A tensor decoded to f32, rows first. Errors if it is missing or candle has no decoder for its type.
    pub fn dequantize(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (info, kind) = self.decodable(name)?;
        if kind == GgmlDType::F32 {
            return Ok(Tensor::from_vec(self.words(info)?, info.shape.as_slice(), device)?);
        }
        Ok(self.quantized(name, device)?.dequantize(device)?)
    }

    /// The elements of an f32 tensor, for arithmetic on the host. Errors if it is missing or of another type.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        match self.decodable(name)? {
            (info, GgmlDType::F32) => self.words(info),
            (info, _) => Err(Error::model(format!("tensor {name} is {}, expected F32", info.kind.name()))),
        }
    }

    fn quantized(&self, name: &str, device: &Device) -> Result<QTensor> {
        let (info, kind) = self.decodable(name)?;
        let words = self.words(info)?;
        let bytes = &bytemuck::cast_slice(&words)[..info.bytes as usize];
        Ok(QTensor::new(QStorage::from_data(bytes.into(), device, kind)?, info.shape.as_slice())?)
    }

    fn decodable(&self, name: &str) -> Result<(&TensorInfo, GgmlDType)> {
        let info = self.required(name)?;
        let kind = info.kind.decoder().ok_or_else(|| {
            Error::unsupported(format!("tensor {name} is {}, which can't be decoded for training", info.kind.name()))
        })?;
        Ok((info, kind))
    }

    /// The data as words, since candle needs aligned blocks.
    fn words(&self, info: &TensorInfo) -> Result<Vec<f32>> {
        let mut words = vec![0f32; (info.bytes as usize).div_ceil(4)];
        self.read_into(info, &mut bytemuck::cast_slice_mut(&mut words)[..info.bytes as usize])?;
        Ok(words)
    }

    /// SHA-256 of the whole file, or of all files of a split model one after the other, in lower-case hex. Identifies
    /// the base model that an adapter belongs to.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        for (_, file) in &self.files {
            let mut file = lock(file);
            file.seek(SeekFrom::Start(0))?;
            loop {
                match file.read(&mut chunk)? {
                    0 => break,
                    n => hash.update(&chunk[..n]),
                }
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads a tensor's data. Every read sets the position first, so a poisoned lock is harmless.
    fn read_into(&self, info: &TensorInfo, into: &mut [u8]) -> Result<()> {
        let (path, file) = &self.files[info.file];
        let mut file = lock(file);
        file.seek(SeekFrom::Start(info.offset))?;
        file.read_exact(into).map_err(|e| Error::from(e).context(format!("reading {}", path.display())))
    }
}

fn wrong_type(key: &str, value: &Value, expected: &str) -> Error {
    Error::model(format!("metadata key {key} has type {}, expected {expected}", value.kind()))
}

#[cfg(test)]
mod tests;
