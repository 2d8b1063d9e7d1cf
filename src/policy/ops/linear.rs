//! The frozen linear layer with its low-rank update as one operation. Never computes the frozen weight's gradient.
//!
//! The update rides on the same product: `y = [x, u] [W, B]ᵀ` with `u = scale · x Aᵀ`, and backward
//! `dx = [dy, v] [W; A]` with `v = scale · dy B`.

use super::cpu::{Values, result, slice, tensor};
use super::matrix::{Begin, Mat, Precision, Right, Run, product};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::{Arc, OnceLock};

/// The part that does not change from call to call.
pub struct Linear {
    pub weight: Arc<Mat>,
    pub bias: Option<Vec<f32>>,
    pub scale: f32,
    /// `u` of the forward pass, `[N, rank]`.
    pub low: OnceLock<Vec<f32>>,
}

/// `scale · x Mᵀ` or `scale · x M`, `[rows, rank]`.
fn low_rank(x: &Mat, cols: usize, right: Right, rank: usize, scale: f32) -> Vec<f32> {
    let mut low = vec![0f32; x.rows() * rank];
    product(x.part(0, x.rows(), cols), &[right], Begin::Zero, &mut low, Run::Parallel);
    low.iter_mut().for_each(|v| *v *= scale);
    low
}

impl Linear {
    fn precision(&self) -> Precision {
        self.weight.precision()
    }

    fn begin(&self) -> Begin<'_> {
        self.bias.as_deref().map_or(Begin::Zero, Begin::Bias)
    }

    fn plain_forward(&self, x: &[f32]) -> Vec<f32> {
        let (out, inp) = (self.weight.rows(), self.weight.cols());
        let x = Mat::new(self.precision(), x, inp);
        let mut y = vec![0f32; x.rows() * out];
        product(x.all(), &[Right::Transposed(self.weight.all())], self.begin(), &mut y, Run::Parallel);
        y
    }

    fn plain_backward(&self, dy: &[f32]) -> Vec<f32> {
        let (out, inp) = (self.weight.rows(), self.weight.cols());
        let dy = Mat::new(self.precision(), dy, out);
        let mut dx = vec![0f32; dy.rows() * inp];
        product(dy.all(), &[Right::Straight(self.weight.all())], Begin::Zero, &mut dx, Run::Parallel);
        dx
    }

    fn forward(&self, x: &[f32], a: &[f32], b: &[f32]) -> Vec<f32> {
        let (out, inp, rank) = (self.weight.rows(), self.weight.cols(), a.len() / self.weight.cols());
        let mut x = Mat::with_room(self.precision(), x, inp, rank);
        let (a, b) = (Mat::new(self.precision(), a, inp), Mat::new(self.precision(), b, rank));
        let low = low_rank(&x, inp, Right::Transposed(a.all()), rank, self.scale);
        x.put(inp.next_multiple_of(2), &low, rank, 1.0);
        self.low.set(low).ok();
        let mut y = vec![0f32; x.rows() * out];
        let rights = [Right::Transposed(self.weight.all()), Right::Transposed(b.all())];
        product(x.all(), &rights, self.begin(), &mut y, Run::Parallel);
        y
    }

    /// `(dx, dA, dB)`.
    fn backward(
        &self,
        x: &[f32],
        a: &[f32],
        b: &[f32],
        dy: &[f32],
        need_dx: bool,
    ) -> (Option<Vec<f32>>, Vec<f32>, Vec<f32>) {
        let precision = self.precision();
        let (out, inp, rank) = (self.weight.rows(), self.weight.cols(), a.len() / self.weight.cols());
        let (a, b) = (Mat::new(precision, a, inp), Mat::new(precision, b, rank));
        let mut dy = Mat::with_room(precision, dy, out, rank);
        let dlow = low_rank(&dy, out, Right::Straight(b.all()), rank, self.scale);
        // dB = dyᵀ u, made as (uᵀ dy)ᵀ: few rows, so the large operand is only packed.
        let low = self.low.get().map_or(&[][..], Vec::as_slice);
        let low = Mat::transpose_of(precision, low, rank, 1.0);
        let mut db_t = vec![0f32; rank * out];
        product(low.all(), &[Right::Straight(dy.part(0, dy.rows(), out))], Begin::Zero, &mut db_t, Run::Parallel);
        let db = (0..out * rank).map(|i| db_t[i % rank * out + i / rank]).collect();
        // dA = vᵀ x.
        let x = Mat::new(precision, x, inp);
        let mut da = vec![0f32; rank * inp];
        let dlow_t = Mat::transpose_of(precision, &dlow, rank, 1.0);
        product(dlow_t.all(), &[Right::Straight(x.all())], Begin::Zero, &mut da, Run::Parallel);
        let dx = need_dx.then(|| {
            dy.put(out.next_multiple_of(2), &dlow, rank, 1.0);
            let mut dx = vec![0f32; dy.rows() * inp];
            let rights = [Right::Straight(self.weight.all()), Right::Straight(a.all())];
            product(dy.all(), &rights, Begin::Zero, &mut dx, Run::Parallel);
            dx
        });
        (dx, da, db)
    }
}

/// Without an update: an operation of `x` alone.
pub struct Alone(pub Linear);

impl CustomOp1 for Alone {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.0.plain_forward(slice(self.name(), x, l)?);
        result(y, &Shape::from((l.dims()[0], self.0.weight.rows())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let dx = self.0.plain_backward(&Values::of(&dy)?);
        tensor(dx, x.shape()).map(Some)
    }
}

/// With an update: an operation of `x`, `A` and `B`.
pub struct Adapted(pub Linear);

impl CustomOp3 for Adapted {
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
        let op = self.name();
        let y = self.0.forward(slice(op, x, lx)?, slice(op, a, la)?, slice(op, b, lb)?);
        result(y, &Shape::from((lx.dims()[0], self.0.weight.rows())))
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
        let (xs, av, bv) = (Values::of(x)?, Values::of(a)?, Values::of(b)?);
        let (dx, da, db) = self.0.backward(&xs, &av, &bv, &Values::of(&dy)?, x.track_op());
        let dx = dx.map(|dx| tensor(dx, x.shape())).transpose()?;
        Ok((dx, Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
