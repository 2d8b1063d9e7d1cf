//! Converts folders of models, as the Hugging Face hub has them, to GGUF. Never computes with a model, and never
//! changes a folder.

mod checkpoint;
mod gptj;
mod vocabulary;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use candle_core::quantized::GgmlDType;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files;

pub use gptj::gptj;

/// The number format of a converted model's matrices; vectors are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, of numbers up to 65504.
    F16,
    /// bfloat16.
    Bf16,
}

impl Floats {
    const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// llama.cpp's name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    fn format(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
        }
    }

    /// llama.cpp's number of such a file (`llama_ftype`).
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
        }
    }

    /// The largest number.
    fn most(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => half::f16::MAX.to_f32(),
            Self::Bf16 => half::bf16::MAX.to_f32(),
        }
    }
}

impl fmt::Display for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Floats {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| Error::arg(format!("the type {name:.40} is not known, expected f32, f16 or bf16")))
    }
}

/// The object that a file of JSON holds.
///
/// # Errors
/// `Model` naming the file, if it can't be read, is too long, or holds no object.
fn object(path: &Path) -> Result<Map<String, Value>> {
    let at = |why: String| Error::model(format!("{}: {why}", path.display()));
    let bytes = files::read(path, files::MOST).map_err(|e| at(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| at(format!("it is not an object of JSON: {e}")))
}

/// How a value is shown in an error.
fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing".to_owned(), |value| format!("{:.60}", value.to_string()))
}
