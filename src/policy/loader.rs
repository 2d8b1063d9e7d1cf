//! Reads a decoder's tensors from a GGUF file, checking each shape. Computes nothing.

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::blocks::{Block, Classic, Fed, Gated, Linear, LinearInfo, Norm, Projections};
use super::experts::{Expert, Experts};
use super::ops::{Bytes, Format, Frozen, Quantized, map};
use super::{ExpertSizes, Shape};
use crate::error::{Error, Result};
use crate::gguf::Gguf;

/// Tracks which tensors were read: an unread one belongs to a feature that is not computed here.
pub(super) struct Loader<'a> {
    pub(super) file: &'a Gguf,
    pub(super) shape: &'a Shape,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
    /// Whether weights stay as the file stores them.
    pub(super) as_stored: bool,
    /// The model's files, mapped.
    maps: Vec<Bytes>,
    pub(super) used: HashSet<String>,
    /// The linear layers read so far; a layer's number is its index here.
    pub(super) linears: Vec<LinearInfo>,
}

impl<'a> Loader<'a> {
    /// # Errors
    /// `Io` if a file can't be mapped.
    pub(super) fn new(
        file: &'a Gguf,
        shape: &'a Shape,
        device: &'a Device,
        dtype: DType,
        as_stored: bool,
    ) -> Result<Self> {
        let maps = file.handles()?.iter().map(map).collect::<Result<_>>()?;
        Ok(Self { file, shape, device, dtype, as_stored, maps, used: HashSet::new(), linears: Vec::new() })
    }

    /// The embedding as the file stores it, whose rows are decoded when they are looked up. [vocabulary, width]
    pub(super) fn embedding(&mut self) -> Result<Frozen> {
        let name = "token_embd.weight";
        let rows = self.file.tensor(name).map_or(0, |info| info.shape().first().copied().unwrap_or(0));
        let expected = [rows, self.shape.width];
        match self.stored(name, &expected)? {
            // Exact, whatever products round to.
            Some(table) => Frozen::quantized(table, DType::F32, self.device),
            None => Frozen::new(&self.read(name, &expected)?, DType::F32),
        }
    }

    pub(super) fn block(&mut self, layer: usize) -> Result<Block> {
        let Shape { width, heads, head_dim, feed_forward, architecture, .. } = *self.shape;
        let q = heads * head_dim;
        let name = |part: &str| format!("blk.{layer}.{part}");
        if architecture.classic {
            return Ok(Block::Classic(Box::new(Classic {
                attn_norm: self.norm(&name("attn_norm"))?,
                projections: self.projections(layer)?,
                attn_output: self.linear(layer, "attn_output", width, q)?,
                ffn_norm: (!architecture.one_norm).then(|| self.norm(&name("ffn_norm"))).transpose()?,
                ffn_up: self.linear(layer, "ffn_up", feed_forward, width)?,
                ffn_down: self.linear(layer, "ffn_down", width, feed_forward)?,
            })));
        }
        let mut vector = |part: &str, size: usize| self.read(&format!("{}.weight", name(part)), &[size]);
        let (attn_norm, ffn_norm) = (vector("attn_norm", width)?, vector("ffn_norm", width)?);
        let head_norms = match architecture.head_norms {
            true => Some((vector("attn_q_norm", head_dim)?, vector("attn_k_norm", head_dim)?)),
            false => None,
        };
        let post_norms = match architecture.post_norms {
            true => Some([self.norm(&name("post_attention_norm"))?, self.norm(&name("post_ffw_norm"))?]),
            false => None,
        };
        let windowed = self.shape.window.as_ref().is_some_and(|window| window.blocks[layer]);
        Ok(Block::Gated(Box::new(Gated {
            post_norms,
            windowed,
            attn_norm,
            projections: self.projections(layer)?,
            head_norms,
            attn_output: self.linear(layer, "attn_output", width, q)?,
            ffn_norm,
            fed: self.fed(layer)?,
        })))
    }

    /// Together where the file has them so, as llama.cpp takes them.
    fn projections(&mut self, layer: usize) -> Result<Projections> {
        let Shape { width, heads, kv_heads, head_dim, .. } = *self.shape;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        if self.file.tensor(&format!("blk.{layer}.attn_qkv.weight")).is_some() {
            return Ok(Projections::Together(self.linear(layer, "attn_qkv", q + 2 * kv, width)?));
        }
        let mut one = |part, out| self.linear(layer, part, out, width);
        Ok(Projections::Apart([one("attn_q", q)?, one("attn_k", kv)?, one("attn_v", kv)?]))
    }

    fn fed(&mut self, layer: usize) -> Result<Fed> {
        let Shape { width, feed_forward, architecture, experts, .. } = *self.shape;
        if let Some(sizes) = experts {
            return Ok(Fed::Experts(self.experts(layer, sizes)?));
        }
        let mut one = |part, out, inp| self.linear(layer, part, out, inp);
        Ok(match architecture.fused_gate {
            true => Fed::Together {
                gate_up: one("ffn_up", 2 * feed_forward, width)?,
                down: one("ffn_down", width, feed_forward)?,
            },
            false => Fed::Apart {
                gate: one("ffn_gate", feed_forward, width)?,
                up: one("ffn_up", feed_forward, width)?,
                down: one("ffn_down", width, feed_forward)?,
            },
        })
    }

    fn experts(&mut self, layer: usize, ExpertSizes { count, used, feed_forward }: ExpertSizes) -> Result<Experts> {
        let width = self.shape.width;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let router = Frozen::new(&self.read(&name("ffn_gate_inp"), &[count, width])?, DType::F32)?;
        let gates = self.stack(&name("ffn_gate_exps"), count, feed_forward, width)?;
        let ups = self.stack(&name("ffn_up_exps"), count, feed_forward, width)?;
        let downs = self.stack(&name("ffn_down_exps"), count, width, feed_forward)?;
        let each = gates.into_iter().zip(ups).zip(downs);
        let experts = each.map(|((gate, up), down)| Expert { gate, up, down }).collect();
        Ok(Experts { router, experts, used })
    }

    /// The matrices of a tensor that holds one for each expert.
    fn stack(&mut self, name: &str, count: usize, out: usize, inp: usize) -> Result<Vec<Frozen>> {
        self.check(name, &[count, out, inp])?;
        if let Some((bytes, place, format)) = self.place(name, inp)? {
            let size = place.len() / count;
            let one = |i: usize| -> Result<Frozen> {
                let place = place.start + i * size..place.start + (i + 1) * size;
                let matrix = Quantized::new(bytes.clone(), place, format, out, inp).map_err(|e| e.context(name))?;
                self.packed(matrix)
            };
            return (0..count).map(one).collect();
        }
        let all = self.file.dequantize(name, self.device)?;
        (0..count).map(|i| Frozen::new(&all.get(i)?, self.dtype)).collect()
    }

    fn linear(&mut self, layer: usize, part: &'static str, out: usize, inp: usize) -> Result<Linear> {
        let tensor = format!("blk.{layer}.{part}.weight");
        let weight = self.frozen(&tensor, out, inp)?;
        let bias = format!("blk.{layer}.{part}.bias");
        let bias = self.file.tensor(&bias).map(|_| self.read(&bias, &[out])).transpose()?;
        let index = self.linears.len();
        self.linears.push(LinearInfo { tensor, part, out_features: out, in_features: inp });
        Ok(Linear { index, weight, bias })
    }

    /// A norm of hidden states, with a bias if the architecture has one.
    pub(super) fn norm(&mut self, name: &str) -> Result<Norm> {
        let width = self.shape.width;
        let weight = self.read(&format!("{name}.weight"), &[width])?;
        let bias = self.shape.architecture.classic.then(|| self.read(&format!("{name}.bias"), &[width])).transpose()?;
        Ok(Norm { weight, bias, eps: self.shape.eps })
    }

    /// What the head adds to the logits, if the file has it.
    pub(super) fn head_bias(&mut self, vocabulary: usize) -> Result<Option<Tensor>> {
        let name = "output.bias";
        self.file.tensor(name).map(|_| self.read(name, &[vocabulary])).transpose()
    }

    pub(super) fn frozen(&mut self, name: &str, out: usize, inp: usize) -> Result<Frozen> {
        match self.stored(name, &[out, inp])? {
            Some(matrix) => self.packed(matrix),
            None => Frozen::new(&self.read(name, &[out, inp])?, self.dtype),
        }
    }

    /// A matrix of the file as it is held.
    fn packed(&self, matrix: Quantized) -> Result<Frozen> {
        if self.as_stored {
            return Frozen::quantized(matrix, self.dtype, self.device);
        }
        let (out, inp) = (matrix.rows(), matrix.cols());
        let mut values = Vec::new();
        matrix.read(0..out, &mut values);
        Frozen::new(&Tensor::from_vec(values, (out, inp), self.device)?, self.dtype)
    }

    /// A matrix where it lies in the mapped file. `None` if products can't decode it.
    fn stored(&mut self, name: &str, shape: &[usize; 2]) -> Result<Option<Quantized>> {
        self.check(name, shape)?;
        let Some((bytes, place, format)) = self.place(name, shape[1])? else { return Ok(None) };
        Quantized::new(bytes, place, format, shape[0], shape[1]).map(Some).map_err(|e| e.context(name))
    }

    /// Where a tensor with rows of `inp` values lies, under the same conditions.
    fn place(&self, name: &str, inp: usize) -> Result<Option<(Bytes, Range<usize>, Format)>> {
        let Some(info) = self.file.tensor(name) else { return Ok(None) };
        let (file, place) = info.place();
        let (Some(bytes), Some(format)) = (self.maps.get(file), Format::named(info.kind().name())) else {
            return Ok(None);
        };
        if !Quantized::takes(format, inp) {
            return Ok(None);
        }
        let place = usize::try_from(place.start).and_then(|start| Ok(start..usize::try_from(place.end)?));
        let place = place.map_err(|_| Error::model(format!("tensor {name} lies beyond what can be addressed here")))?;
        Ok(Some((bytes.clone(), place, format)))
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.check(name, shape)?;
        self.file.dequantize(name, self.device)
    }

    /// Checks the shape of a tensor that is used from now on, before any of its data is read.
    fn check(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        match self.file.tensor(name) {
            Some(info) if info.shape() != shape => Err(wrong_shape(name, info.shape(), &format!("{shape:?}"))),
            _ => {
                self.used.insert(name.to_owned());
                Ok(())
            }
        }
    }

    pub(super) fn refuse_unused(&self) -> Result<()> {
        // These are already part of the shape's frequencies.
        let factors = |name: &str| name == "rope_freqs.weight" && self.shape.architecture.rope_factors;
        let mut names = self.file.tensors().iter().map(|info| info.name());
        match names.find(|name| !self.used.contains(*name) && !factors(name)) {
            Some(name) => Err(Error::unsupported(format!(
                "tensor {name} belongs to a feature of {} that the trainer doesn't compute",
                self.shape.architecture
            ))),
            None => Ok(()),
        }
    }
}

fn wrong_shape(name: &str, found: &[usize], expected: &str) -> Error {
    Error::model(format!("tensor {name} has shape {found:?}, expected {expected}"))
}
