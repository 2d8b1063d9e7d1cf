//! SwiGLU and GELU. Keep only their inputs for the backward pass.

use super::cpu::{Values, exp, result, rows, sigmoid, slice, tensor};
use super::vectors::{map, map_all};
use super::{cpu, elsewhere};
use crate::error::Error;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// `silu(gate) · up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> crate::Result<Tensor> {
    if gate.dims() != up.dims() {
        return Err(Error::train(format!("swiglu: gate is {:?}, up {:?}, expected one shape", gate.dims(), up.dims())));
    }
    if !cpu::takes(gate) {
        return elsewhere::swiglu(gate, up);
    }
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu)?)
}

/// GELU in its tanh approximation, as in ggml.
pub fn gelu(x: &Tensor) -> crate::Result<Tensor> {
    if !cpu::takes(x) {
        return elsewhere::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(Gelu)?)
}

/// Elements per task.
const STEP: usize = 1 << 12;

/// `silu(gate) · up`.
pub struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, g: &CpuStorage, lg: &Layout, u: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, u) = (slice(self.name(), g, lg)?, slice(self.name(), u, lu)?);
        let mut y = vec![0f32; g.len()];
        rows(&mut y, 1, |at, y| gated(&g[at..], &u[at..], y));
        result(y, lg.shape())
    }

    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (gs, us, dys) = (Values::of(g)?, Values::of(u)?, Values::of(&dy)?);
        let (gs, us, dys): (&[f32], &[f32], &[f32]) = (&gs, &us, &dys);
        let (mut dg, mut du) = (vec![0f32; gs.len()], vec![0f32; gs.len()]);
        use rayon::prelude::*;
        dg.par_chunks_mut(STEP).zip(du.par_chunks_mut(STEP)).enumerate().for_each(|(i, (dg, du))| {
            let inputs = i * STEP..i * STEP + dg.len();
            dg.copy_from_slice(&gs[inputs.clone()]);
            du.copy_from_slice(&us[inputs.clone()]);
            gated_backward(dg, du, &dys[inputs]);
        });
        Ok((Some(tensor(dg, g.shape())?), Some(tensor(du, u.shape())?)))
    }
}

/// `silu(gate) · up`.
pub fn gated(gate: &[f32], up: &[f32], to: &mut [f32]) {
    map(to, [gate, up], |_, [g, u]| g * sigmoid(g) * u);
}

/// Puts the gradients of gate and up in their place.
pub fn gated_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    map_all([gate, up], [dy], |[g, u], [dy]| {
        let s = sigmoid(g);
        [dy * u * s * (1.0 + g * (1.0 - s)), dy * g * s]
    });
}

/// GELU in its tanh approximation.
pub struct Gelu;

const ROOT: f32 = 0.797_884_6; // sqrt(2 / π)
const CUBE: f32 = 0.044_715;

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(self.name(), x, l)?;
        let mut y = vec![0f32; x.len()];
        rows(&mut y, 1, |at, y| {
            map(y, [&x[at..]], |_, [x]| 0.5 * x * (1.0 + tanh(ROOT * x * (1.0 + CUBE * x * x))));
        });
        result(y, l.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (xs, dys) = (Values::of(x)?, Values::of(&dy)?);
        let (xs, dys): (&[f32], &[f32]) = (&xs, &dys);
        let mut dx = vec![0f32; xs.len()];
        rows(&mut dx, 1, |at, dx| {
            map(dx, [&xs[at..], &dys[at..]], |_, [x, dy]| {
                let t = tanh(ROOT * x * (1.0 + CUBE * x * x));
                let slope = (1.0 - t * t) * ROOT * (1.0 + 3.0 * CUBE * x * x);
                dy * (0.5 * (1.0 + t) + 0.5 * x * slope)
            });
        });
        tensor(dx, x.shape()).map(Some)
    }
}
