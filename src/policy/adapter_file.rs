//! Adapters as GGUF files, the format that llama.cpp loads (its llama-adapter.cpp). Trusts nothing in a file:
//! everything is checked against the base.

use std::path::Path;

use candle_core::{Tensor, Var};

use super::lora::{Factors, Lora, other_base};
use super::{Decoder, LinearInfo};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value, Writer};

/// SHA-256 of the base model's file that an adapter or head was trained on.
pub(super) const BASE_KEY: &str = "apa.base.sha256";
const ALPHA_KEY: &str = "adapter.lora.alpha";

impl Lora {
    /// Writes the adapter, whole or not at all. `extra` is additional metadata.
    pub fn write_gguf(&self, path: &Path, extra: &[(&str, Value)]) -> Result<()> {
        let mut file = Writer::new();
        for (key, value) in extra {
            file.set(key, value.clone());
        }
        file.set("general.type", "adapter");
        self.add_to(&mut file)?;
        file.write(path)
    }

    /// Adds the adapter to a file that also holds other tensors.
    pub fn add_to(&self, file: &mut Writer<'_>) -> Result<()> {
        file.set("general.architecture", self.architecture);
        file.set("adapter.type", "lora").set(ALPHA_KEY, self.alpha as f32).set(BASE_KEY, self.base.as_str());
        for (name, var) in self.named() {
            file.tensor(&name, var.as_tensor())?;
        }
        Ok(())
    }

    /// Reads an adapter for this base. Errors say what doesn't fit: the kind, the base, a shape, a rank, or a missing
    /// factor.
    pub fn read_gguf(path: &Path, decoder: &Decoder) -> Result<Self> {
        let file = Gguf::open(path)?;
        let read = expect(&file, "general.type", "adapter").and_then(|()| Self::read_from(&file, decoder, &[]));
        read.map_err(|e| e.context(format!("adapter {}", path.display())))
    }

    /// Reads the adapter from a file that holds more; tensors whose names begin with one of `beside` are ignored.
    pub fn read_from(file: &Gguf, decoder: &Decoder, beside: &[&str]) -> Result<Self> {
        read(file, decoder, beside)
    }
}

fn read(file: &Gguf, decoder: &Decoder, beside: &[&str]) -> Result<Lora> {
    expect(file, "adapter.type", "lora")?;
    expect(file, "general.architecture", decoder.shape().architecture.name)?;
    // Adapters made elsewhere don't name their base; then only the shapes can tell.
    if let Some(base) = file.opt_str(BASE_KEY)?
        && base != decoder.fingerprint()
    {
        return Err(other_base(base, decoder.fingerprint()));
    }
    let alpha = f64::from(file.f32(ALPHA_KEY)?);
    let mut rank = None;
    let mut layers = Vec::with_capacity(decoder.linears().len());
    for linear in decoder.linears() {
        layers.push(read_layer(file, decoder, linear, &mut rank)?);
    }
    let taken = 2 * layers.iter().flatten().count();
    let others = |name: &str| beside.iter().any(|prefix| name.starts_with(prefix));
    let own = || file.tensors().iter().map(|info| info.name()).filter(|name| !others(name));
    if taken != own().count() {
        let known = |name: &str| {
            let base = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b"));
            base.is_some_and(|base| decoder.linears().iter().any(|l| l.tensor == base))
        };
        let stray = own().find(|name| !known(name)).unwrap_or_default();
        return Err(Error::arg(format!("its tensor {stray} changes no linear layer of the base")));
    }
    Lora::from_layers(decoder.identity(), rank.unwrap_or_default(), alpha, layers)
}

fn expect(file: &Gguf, key: &str, expected: &str) -> Result<()> {
    match file.str(key)? {
        found if found == expected => Ok(()),
        found => Err(Error::arg(format!("its {key} is {found:.40}, expected {expected}"))),
    }
}

/// `rank` is the rank of the layers read so far, which all must share.
fn read_layer(
    file: &Gguf,
    decoder: &Decoder,
    linear: &LinearInfo,
    rank: &mut Option<usize>,
) -> Result<Option<Factors>> {
    let factor = |kind: &str| -> Result<Option<Tensor>> {
        let name = format!("{}.lora_{kind}", linear.tensor);
        file.tensor(&name).map(|_| file.dequantize(&name, decoder.device())).transpose()
    };
    let (a, b) = match (factor("a")?, factor("b")?) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return Ok(None),
        (a, _) => {
            let missing = if a.is_some() { "lora_b" } else { "lora_a" };
            return Err(Error::arg(format!("{} has no {missing}", linear.tensor)));
        }
    };
    factors(linear, a, b, rank).map(Some)
}

/// Checks a pair of factors against its layer and makes it trainable.
pub(super) fn factors(linear: &LinearInfo, a: Tensor, b: Tensor, rank: &mut Option<usize>) -> Result<Factors> {
    let LinearInfo { tensor, out_features, in_features, .. } = linear;
    let (a_shape, b_shape) = (a.dims2()?, b.dims2()?);
    if a_shape.0 != b_shape.1 {
        return Err(Error::arg(format!("{tensor}: its lora_a has rank {}, its lora_b {}", a_shape.0, b_shape.1)));
    }
    if (b_shape.0, a_shape.1) != (*out_features, *in_features) {
        return Err(Error::arg(format!(
            "{tensor}: the update is [{}, {}], the base's weight [{out_features}, {in_features}]",
            b_shape.0, a_shape.1
        )));
    }
    let expected = *rank.get_or_insert(a_shape.0);
    if expected != a_shape.0 {
        return Err(Error::arg(format!("{tensor} has rank {}, the layers before have {expected}", a_shape.0)));
    }
    Ok(Factors { tensor: tensor.clone(), a: Var::from_tensor(&a)?, b: Var::from_tensor(&b)? })
}
