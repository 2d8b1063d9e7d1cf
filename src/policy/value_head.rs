//! A scalar head on hidden states, for the critic and the reward model. Knows no adapter.

use std::path::Path;

use candle_core::{DType, Tensor, Var};

use super::Decoder;
use super::adapter_file::BASE_KEY;
use super::lora::other_base;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Writer};

const KIND: &str = "value_head";

/// h · weight + bias. Starts at zero.
#[derive(Clone)]
pub struct ValueHead {
    /// [width].
    weight: Var,
    /// [1].
    bias: Var,
    /// SHA-256 of the base whose hidden states it reads.
    base: String,
}

impl ValueHead {
    /// A head whose output is 0 for every input.
    pub fn new(decoder: &Decoder) -> Result<Self> {
        Ok(Self {
            weight: Var::zeros(decoder.width(), DType::F32, decoder.device())?,
            bias: Var::zeros(1, DType::F32, decoder.device())?,
            base: decoder.fingerprint().to_owned(),
        })
    }

    /// One scalar per row: [rows, width] to [rows]. Differentiable in the rows, the weight and the bias.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let product = hidden.matmul(&self.weight.as_tensor().unsqueeze(1)?)?.squeeze(1)?;
        Ok(product.broadcast_add(self.bias.as_tensor())?)
    }

    /// The trained variables.
    pub fn vars(&self) -> Vec<Var> {
        vec![self.weight.clone(), self.bias.clone()]
    }

    /// The trained variables with their names.
    pub fn named(&self) -> Vec<(String, Var)> {
        vec![("value_head.weight".into(), self.weight.clone()), ("value_head.bias".into(), self.bias.clone())]
    }

    /// Writes the head to a GGUF file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = Writer::new();
        file.set("general.type", KIND);
        self.add_to(&mut file)?;
        file.write(path)
    }

    /// Adds the head to a file that also holds other tensors; its tensors' names begin with `value_head.`.
    pub fn add_to(&self, file: &mut Writer<'_>) -> Result<()> {
        file.set(BASE_KEY, self.base.as_str());
        for (name, var) in self.named() {
            file.tensor(&name, var.as_tensor())?;
        }
        Ok(())
    }

    /// Reads a head for this base.
    pub fn load(path: &Path, decoder: &Decoder) -> Result<Self> {
        let file = Gguf::open(path)?;
        let kind = match file.str("general.type") {
            Ok(KIND) => Ok(()),
            Ok(other) => Err(Error::arg(format!("its general.type is {other:.40}, expected {KIND}"))),
            Err(error) => Err(error),
        };
        kind.and_then(|()| Self::read_from(&file, decoder))
            .map_err(|e| e.context(format!("value head {}", path.display())))
    }

    /// Reads the head from a file that also holds other tensors.
    pub fn read_from(file: &Gguf, decoder: &Decoder) -> Result<Self> {
        let base = file.str(BASE_KEY)?.to_owned();
        if base != decoder.fingerprint() {
            return Err(other_base(&base, decoder.fingerprint()));
        }
        let var = |name: &str, width: usize| -> Result<Var> {
            let values = file.dequantize(name, decoder.device())?;
            if values.dims() != [width] {
                return Err(Error::arg(format!("its {name} has shape {:?}, expected [{width}]", values.dims())));
            }
            Ok(Var::from_tensor(&values)?)
        };
        Ok(Self { weight: var("value_head.weight", decoder.width())?, bias: var("value_head.bias", 1)?, base })
    }
}
