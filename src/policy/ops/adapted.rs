//! The arguments of a linear layer: frozen weight, bias, low-rank update, with the checks of their shapes. Never
//! multiplies.

use super::frozen::Frozen;
use crate::error::{Error, Result};
use candle_core::Tensor;

/// The two factors of a low-rank update: `scale · B A` is added to a frozen weight.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    /// `[rank, in]`.
    pub a: &'a Tensor,
    /// `[out, rank]`.
    pub b: &'a Tensor,
    /// Usually alpha / rank.
    pub scale: f64,
}

/// The arguments of [`linear`].
#[derive(Clone, Copy, Debug)]
pub struct Adapted<'a> {
    /// `[out, in]`.
    pub weight: &'a Frozen,
    /// `[out]`, frozen.
    pub bias: Option<&'a Tensor>,
    /// The low-rank update.
    pub lora: Option<LoraPair<'a>>,
}

/// Errors, with what was expected, if the layer does not accept an input of this shape.
pub(super) fn check(x: &[usize], layer: &Adapted) -> Result<()> {
    let (out, inp) = (layer.weight.out_features(), layer.weight.in_features());
    if x.len() != 2 || x[1] != inp {
        return Err(Error::train(format!("linear: x is {x:?}, the weight [{out}, {inp}] expects [N, {inp}]")));
    }
    if let Some(bias) = layer.bias
        && bias.dims() != [out]
    {
        return Err(Error::train(format!(
            "linear: bias is {:?}, the weight [{out}, {inp}] expects [{out}]",
            bias.dims()
        )));
    }
    if let Some(l) = &layer.lora {
        let (a, b) = (l.a.dims(), l.b.dims());
        if a.len() != 2 || b.len() != 2 || a[1] != inp || b[0] != out || a[0] != b[1] {
            return Err(Error::train(format!(
                "linear: LoRA factors are {a:?} and {b:?}, expected [rank, {inp}] and [{out}, rank]"
            )));
        }
    }
    Ok(())
}
