//! Attention's kernels, and the tiles that their blocks take.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Result};

use super::array::{Array, At};
use super::launch::{Launch, address, launch, name};
use crate::policy::ops::attention::Shapes;

/// Rows that a block of attention has, and how many it sees at a time: `OWN` and `STEP` of attention.cuh.
const OWN: usize = 64;
const STEP: usize = 32;

/// Attention's shapes, with its sequences cut into tiles.
pub struct Tiles<'a> {
    pub shapes: &'a Shapes,
    /// First row, rows, start and end of the sequence, u32 each.
    places: Array,
    count: usize,
    dim: usize,
}

impl<'a> Tiles<'a> {
    /// `None` if heads are too wide.
    pub fn new(gpu: &CudaDevice, shapes: &'a Shapes) -> Result<Option<Self>> {
        let Some(dim) = [64, 128, 256].into_iter().find(|dim| shapes.dim <= *dim) else { return Ok(None) };
        let mut places: Vec<u32> = Vec::new();
        for border in shapes.starts.windows(2) {
            for first in (border[0]..border[1]).step_by(OWN) {
                let count = OWN.min(border[1] - first);
                places.extend([first, count, border[0], border[1]].map(|n| n as u32));
            }
        }
        let count = places.len() / 4;
        Ok(Some(Self { shapes, places: Array::of(gpu, if count > 0 { &places } else { &[0] })?, count, dim }))
    }

    fn window(&self) -> i32 {
        // No token sees further than all of them.
        self.shapes.window.min(self.shapes.starts.last().copied().unwrap_or(0).max(1)) as i32
    }

    fn launch(&self, dtype: DType, heads: usize, slopes: bool, weights: bool) -> Launch {
        let size = dtype.size_in_bytes();
        let row = self.dim * size + 16;
        let mut shared = (OWN + STEP) * row + OWN * (STEP + 4) * 4;
        if weights {
            shared += OWN * (STEP + 8) * size;
        }
        if slopes {
            shared += OWN * row;
        }
        Launch { blocks: (self.count, heads), threads: 2 * OWN as u32, shared }
    }

    fn kernel(&self, kind: &str, dtype: DType) -> String {
        format!("{kind}_{}_{}", name(dtype), self.dim)
    }

    /// Log-sums of each query's scores, `[n, heads]` in f32.
    pub fn log_sums(&self, gpu: &CudaDevice, q: At, k: At, sums: At) -> Result<()> {
        let s = self.shapes;
        launch!(
            gpu,
            &self.kernel("log_sums", q.dtype),
            self.launch(q.dtype, s.heads, false, false),
            q.pointer,
            k.pointer,
            sums.pointer,
            self.places.all().pointer,
            s.heads as i32,
            s.kv_heads as i32,
            s.dim as i32,
            self.window(),
            s.scale
        );
        Ok(())
    }

    /// One of the four sweeps; see `sweep` in attention.cuh.
    pub fn sweep(
        &self,
        gpu: &CudaDevice,
        sweep: Sweep,
        operands: [At; 4],
        out: At,
        sums: At,
        deltas: Option<At>,
    ) -> Result<()> {
        let s = self.shapes;
        let (kind, heads, slopes) = match sweep {
            Sweep::Out => ("attention", s.heads, false),
            Sweep::Values => ("attention_dv", s.kv_heads, false),
            Sweep::Queries => ("attention_dq", s.heads, true),
            Sweep::Keys => ("attention_dk", s.kv_heads, true),
        };
        let dtype = operands[0].dtype;
        let [own, own2, other, values] = operands.map(|at| at.pointer);
        launch!(
            gpu,
            &self.kernel(kind, dtype),
            self.launch(dtype, heads, slopes, true),
            own,
            own2,
            other,
            values,
            out.pointer,
            sums.pointer,
            address(deltas),
            self.places.all().pointer,
            s.heads as i32,
            s.kv_heads as i32,
            s.dim as i32,
            self.window(),
            s.scale
        );
        Ok(())
    }

    /// The sum over each head of what was given out times its gradient, `[n, heads]` in f32.
    pub fn deltas(&self, gpu: &CudaDevice, out: At, dout: At, deltas: At) -> Result<()> {
        let s = self.shapes;
        let count = s.starts.last().copied().unwrap_or(0) * s.heads;
        let kernel = format!("deltas_{}", name(out.dtype));
        launch!(gpu, &kernel, Launch::each(count * 32), out.pointer, dout.pointer, deltas.pointer, s.dim as i32, count);
        Ok(())
    }
}

/// What a sweep of attention computes.
#[derive(Clone, Copy)]
pub enum Sweep {
    Out,
    /// The gradient of the values, ...
    Values,
    /// ... of the queries ...
    Queries,
    /// ... and of the keys.
    Keys,
}
