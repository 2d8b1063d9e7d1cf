//! The frozen linear layer with its low-rank update as one operation. Never computes the frozen weight's gradient.
//!
//! The update is part of the same product: `y = [x, u] [W, B]ᵀ` with `u = scale · x Aᵀ`, and backward `dx = [dy, v] [W;
//! A]` with `v = scale · dy B`.

use super::accumulate::{Begin, Run};
use super::adapted::{Adapted, LoraPair, check};
use super::cpu::{Values, result, slice, tensor};
use super::elsewhere;
use super::frozen::{Frozen, frozen_values};
use super::matrix::{Mat, Precision, Right, product};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::{Arc, OnceLock};

/// `y = x Wᵀ + bias + scale (x Aᵀ) Bᵀ`, `[N, in]` to `[N, out]`. Gradients flow to `x`, `A` and `B`; the bias is
/// frozen.
pub fn linear(x: &Tensor, w: &Frozen, bias: Option<&Tensor>, lora: Option<LoraPair>) -> crate::Result<Tensor> {
    check(x.dims(), &Adapted { weight: w, bias, lora })?;
    let Some(weight) = w.fused(x) else { return elsewhere::linear(x, w, bias, lora) };
    let bias = bias.map(frozen_values).transpose()?;
    let layer = Layer { weight: weight.clone(), bias };
    let x = x.contiguous()?;
    Ok(match lora {
        Some(l) if l.a.dims()[0] > 0 => {
            let op = AdaptedLinear { layer, scale: l.scale as f32, low: OnceLock::new() };
            x.apply_op3(&l.a.contiguous()?, &l.b.contiguous()?, op)?
        }
        _ => x.apply_op1(FrozenLinear(layer))?,
    })
}

/// The constant part of the operation.
#[derive(Clone)]
pub struct Layer {
    pub weight: Arc<Mat>,
    pub bias: Option<Vec<f32>>,
}

/// LoRA factors, rounded to the weights' precision.
pub struct Factors {
    a: Mat,
    b: Mat,
    scale: f32,
}

/// The slices for the factors' gradients: `dA [rank, in]` and `dBᵀ [rank, out]`.
pub struct FactorGrads<'a> {
    pub a: &'a mut [f32],
    pub b_transposed: &'a mut [f32],
}

impl Factors {
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// `scale · (left · right)`, `[rows, rank]`.
    fn low(&self, left: &Mat, cols: usize, right: Right, run: Run) -> Vec<f32> {
        let mut low = vec![0f32; left.rows() * self.rank()];
        product(left.part(0, left.rows(), cols), &[right], Begin::Zero, &mut low, run);
        low.iter_mut().for_each(|v| *v *= self.scale);
        low
    }
}

impl Layer {
    pub fn precision(&self) -> Precision {
        self.weight.precision()
    }

    pub fn out(&self) -> usize {
        self.weight.rows()
    }

    pub fn inp(&self) -> usize {
        self.weight.cols()
    }

    /// `a [rank, in]` and `b [out, rank]`.
    pub fn factors(&self, a: &[f32], b: &[f32], scale: f32) -> Factors {
        let rank = a.len() / self.inp();
        Factors { a: Mat::new(self.precision(), a, self.inp()), b: Mat::new(self.precision(), b, rank), scale }
    }

    /// Writes `y`, or adds to it; returns `u [rows, rank]`. `x` needs space for the rank after its columns.
    pub fn forward(&self, x: &mut Mat, factors: Option<&Factors>, y: &mut [f32], add: bool, run: Run) -> Vec<f32> {
        let (rows, inp) = (x.rows(), self.inp());
        let begin = match &self.bias {
            Some(bias) if add => {
                y.chunks_exact_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
                Begin::Add
            }
            Some(bias) => Begin::Bias(bias),
            None if add => Begin::Add,
            None => Begin::Zero,
        };
        let weight = Right::Transposed(self.weight.all());
        let Some(f) = factors else {
            product(x.part(0, rows, inp), &[weight], begin, y, run);
            return Vec::new();
        };
        let low = f.low(x, inp, Right::Transposed(f.a.all()), run);
        let at = inp.next_multiple_of(2);
        x.put(at, &low, f.rank(), 1.0);
        product(x.part(0, rows, at + f.rank()), &[weight, Right::Transposed(f.b.all())], begin, y, run);
        low
    }

    /// Writes `dx` (or adds to it), and adds to the factors' gradients. `low` is what `forward` returned.
    pub fn backward(
        &self,
        x: &Mat,
        low: &[f32],
        dy: &[f32],
        factors: Option<(&Factors, FactorGrads)>,
        dx: Option<(&mut [f32], Begin)>,
        run: Run,
    ) {
        let (rows, out, precision) = (x.rows(), self.out(), self.precision());
        let weight = Right::Straight(self.weight.all());
        let Some((f, grads)) = factors else {
            if let Some((dx, begin)) = dx {
                product(Mat::new(precision, dy, out).all(), &[weight], begin, dx, run);
            }
            return;
        };
        let rank = f.rank();
        let mut dy = Mat::with_room(precision, dy, out, rank);
        let dlow = f.low(&dy, out, Right::Straight(f.b.all()), run);
        // dB = dyᵀ u, computed as (uᵀ dy)ᵀ: it has few rows, so the large operand is only packed.
        let low_t = Mat::transpose_of(precision, low, rank, 1.0);
        product(low_t.all(), &[Right::Straight(dy.part(0, rows, out))], Begin::Add, grads.b_transposed, run);
        // dA = vᵀ x.
        let dlow_t = Mat::transpose_of(precision, &dlow, rank, 1.0);
        product(dlow_t.all(), &[Right::Straight(x.part(0, rows, self.inp()))], Begin::Add, grads.a, run);
        if let Some((dx, begin)) = dx {
            let at = out.next_multiple_of(2);
            dy.put(at, &dlow, rank, 1.0);
            product(dy.part(0, rows, at + rank), &[weight, Right::Straight(f.a.all())], begin, dx, run);
        }
    }
}

/// Transposes row-major `[rows, cols]` to `[cols, rows]`.
pub fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols.max(1);
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// Without an update: an operation on `x` alone.
pub struct FrozenLinear(pub Layer);

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let layer = &self.0;
        let mut x = Mat::new(layer.precision(), slice(self.name(), x, l)?, layer.inp());
        let mut y = vec![0f32; x.rows() * layer.out()];
        layer.forward(&mut x, None, &mut y, false, Run::Parallel);
        result(y, &Shape::from((x.rows(), layer.out())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let layer = &self.0;
        let dy = Mat::new(layer.precision(), &Values::of(&dy)?, layer.out());
        let mut dx = vec![0f32; dy.rows() * layer.inp()];
        product(dy.all(), &[Right::Straight(layer.weight.all())], Begin::Zero, &mut dx, Run::Parallel);
        tensor(dx, x.shape()).map(Some)
    }
}

/// With an update: an operation on `x`, `A` and `B`.
pub struct AdaptedLinear {
    pub layer: Layer,
    pub scale: f32,
    /// `u` of the forward pass, `[N, rank]`.
    pub low: OnceLock<Vec<f32>>,
}

impl CustomOp3 for AdaptedLinear {
    fn name(&self) -> &'static str {
        "adapted-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (op, layer) = (self.name(), &self.layer);
        let factors = layer.factors(slice(op, a, la)?, slice(op, b, lb)?, self.scale);
        let mut x = Mat::with_room(layer.precision(), slice(op, x, lx)?, layer.inp(), factors.rank());
        let mut y = vec![0f32; x.rows() * layer.out()];
        self.low.set(layer.forward(&mut x, Some(&factors), &mut y, false, Run::Parallel)).ok();
        result(y, &Shape::from((x.rows(), layer.out())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let layer = &self.layer;
        let factors = layer.factors(&Values::of(a)?, &Values::of(b)?, self.scale);
        let input = Mat::new(layer.precision(), &Values::of(x)?, layer.inp());
        let low = self.low.get().map_or(&[][..], Vec::as_slice);
        let (mut da, mut db_t) = (vec![0f32; a.elem_count()], vec![0f32; b.elem_count()]);
        let mut dx = x.track_op().then(|| vec![0f32; x.elem_count()]);
        let grads = FactorGrads { a: &mut da, b_transposed: &mut db_t };
        let to = dx.as_mut().map(|dx| (dx.as_mut_slice(), Begin::Zero));
        layer.backward(&input, low, &Values::of(&dy)?, Some((&factors, grads)), to, Run::Parallel);
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        let db = transposed(&db_t, layer.out());
        Ok((dx, Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
