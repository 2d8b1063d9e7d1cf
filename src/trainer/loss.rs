//! The policy's losses over concatenated log-probabilities, wherever those were computed. Takes no step.

use candle_core::Tensor;

use super::batch::{Sample, slice};
use super::fixed::Fixed;
use crate::align::{self, Clipped};
use crate::config::{Algorithm, Credit, TrainConfig};
use crate::error::Result;

/// The mean loss of some samples with these log-probabilities, through which gradients flow.
pub(super) fn policy_loss(
    logprobs: &Tensor,
    fixed: &Fixed,
    samples: &[&Sample],
    config: &TrainConfig,
) -> Result<Clipped> {
    let at = |flat: &[f32]| rows_like(flat, samples, logprobs);
    let (advantages, mask) = (at(&fixed.advantages)?, logprobs.ones_like()?);
    let plain = |loss| Clipped { loss, clip_fraction: 0.0 };
    Ok(match config.algorithm {
        Algorithm::Apa if config.credit == Credit::Response => {
            plain(response_loss(logprobs, &at(&fixed.ref_logprobs)?, &advantages, samples, config)?)
        }
        Algorithm::Apa => {
            plain(align::apa_loss(logprobs, &at(&fixed.ref_logprobs)?, &advantages, &mask, config.lambda)?)
        }
        Algorithm::Awr => plain(align::awr_loss(logprobs, &advantages, &mask, config.awr.lambda)?),
        Algorithm::Ppo | Algorithm::Rloo => {
            let behavior = at(&fixed.behavior_logprobs)?;
            align::ppo_loss(logprobs, &behavior, &advantages, &mask, config.ppo.clip_range)?
        }
    })
}

/// The loss whose action is the whole answer, over concatenated log-probabilities. An answer's advantage is that of its
/// first token: its reward beyond the value of its prompt.
fn response_loss(
    logprobs: &Tensor,
    ref_logprobs: &Tensor,
    advantages: &Tensor,
    samples: &[&Sample],
    config: &TrainConfig,
) -> Result<Tensor> {
    let time = samples.iter().map(|s| s.response.len()).max().unwrap_or(0);
    let (mut places, mut mask, mut firsts, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0u32);
    for sample in samples {
        let length = sample.response.len();
        firsts.push(start);
        places.extend((0..time).map(|t| if t < length { start + t as u32 } else { start }));
        mask.extend((0..time).map(|t| if t < length { 1f32 } else { 0.0 }));
        start += length as u32;
    }
    let device = logprobs.device();
    let (places, shape) = (Tensor::new(places, device)?, (samples.len(), time));
    let padded = |x: &Tensor| -> Result<Tensor> { Ok(x.index_select(&places, 0)?.reshape(shape)?) };
    let mask = Tensor::from_vec(mask, shape, device)?;
    let advantages = advantages.index_select(&Tensor::new(firsts, device)?, 0)?;
    let (nats, power) = (config.nats_per_reward, config.length_power);
    align::apa_response_loss(&padded(logprobs)?, &padded(ref_logprobs)?, &advantages, &mask, nats, power)
}

/// The samples' entries of a flat array, `[rows]`, on the device of `like`.
pub(super) fn rows_like(flat: &[f32], samples: &[&Sample], like: &Tensor) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(like.elem_count());
    for sample in samples {
        rows.extend_from_slice(slice(flat, sample)?);
    }
    Ok(Tensor::new(rows, like.device())?)
}
