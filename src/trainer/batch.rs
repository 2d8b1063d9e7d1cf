//! A batch made ready: checked, too long samples left out, laid out in rows of response tokens. Never computes a
//! forward pass.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::types::{Rollout, TokenId};

/// Temperatures below this are as good as greedy and would overflow the logits; such samples are trained at 1.
const GREEDY_BELOW: f32 = 0.01;

/// One sample and the rows that its response tokens take in the batch's flat arrays.
pub(super) struct Sample<'a> {
    pub prompt: &'a [TokenId],
    pub response: &'a [TokenId],
    /// Divides the logits; greedy answers are trained at 1.
    pub temperature: f32,
    pub score: f64,
    pub advantage_floor: Option<f64>,
    /// The server's, where they say something of this temperature.
    pub served_logprobs: Option<&'a [f32]>,
    pub rows: Range<usize>,
}

impl Sample<'_> {
    /// Tokens that a forward pass reads: the last one is predicted but predicts nothing.
    pub fn input_tokens(&self) -> usize {
        self.prompt.len() + self.response.len() - 1
    }

    pub fn input(&self) -> Vec<TokenId> {
        let read = self.response.len() - 1;
        self.prompt.iter().chain(self.response.iter().take(read)).copied().collect()
    }
}

/// Samples to train on, response tokens numbered end to end.
pub(super) struct Batch<'a> {
    pub samples: Vec<Sample<'a>>,
    pub left_out: usize,
}

impl<'a> Batch<'a> {
    /// Checks every rollout and leaves out those longer than `max_tokens`.
    ///
    /// # Errors
    /// `Arg` for an empty prompt or response, or a score or temperature that is no number.
    pub fn new(rollouts: &'a [Rollout], max_tokens: usize) -> Result<Self> {
        let mut batch = Batch { samples: Vec::with_capacity(rollouts.len()), left_out: 0 };
        for (i, rollout) in rollouts.iter().enumerate() {
            check(rollout).map_err(|e| e.context(format!("sample {i}")))?;
            if rollout.prompt.len() + rollout.response.len() > max_tokens {
                batch.left_out += 1;
                continue;
            }
            let start = batch.rows();
            batch.samples.push(Sample {
                prompt: &rollout.prompt,
                response: &rollout.response,
                temperature: if rollout.temperature < GREEDY_BELOW { 1.0 } else { rollout.temperature },
                score: rollout.score,
                advantage_floor: rollout.advantage_floor,
                served_logprobs: served_logprobs(rollout),
                rows: start..start + rollout.response.len(),
            });
        }
        Ok(batch)
    }

    /// Response tokens in all.
    pub fn rows(&self) -> usize {
        self.samples.last().map_or(0, |s| s.rows.end)
    }

    /// Whether every score is the same, and none is good by itself: then nothing tells a good answer from a bad one.
    pub fn without_signal(&self) -> bool {
        self.samples.iter().all(|s| s.advantage_floor.is_none())
            && self.samples.windows(2).all(|pair| matches!(pair, [a, b] if a.score == b.score))
    }

    /// Splits samples (indices, in this order) into groups of at most `tokens` input tokens; a longer one stands alone.
    pub fn split(&self, order: &[usize], tokens: usize) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut filled = usize::MAX;
        for &i in order {
            let length = self.samples.get(i).map_or(0, Sample::input_tokens);
            match groups.last_mut() {
                Some(group) if filled.saturating_add(length) <= tokens => {
                    group.push(i);
                    filled += length;
                }
                _ => {
                    groups.push(vec![i]);
                    filled = length;
                }
            }
        }
        groups
    }

    /// The samples of a group.
    pub fn group(&self, indices: &[usize]) -> Vec<&Sample<'a>> {
        indices.iter().filter_map(|i| self.samples.get(*i)).collect()
    }

    /// Flat rows `[rows]` as a padded `[batch, time]` tensor, in f64: these are few numbers, and exact there.
    pub fn padded(&self, flat: &[f64], device: &Device) -> Result<Tensor> {
        let time = self.samples.iter().map(|s| s.response.len()).max().unwrap_or(0);
        let mut padded = Vec::with_capacity(self.samples.len() * time);
        for sample in &self.samples {
            padded.extend_from_slice(slice(flat, sample)?);
            padded.resize(padded.len() + time - sample.response.len(), 0.0);
        }
        Ok(Tensor::from_vec(padded, (self.samples.len(), time), device)?)
    }

    /// The inverse of [`Batch::padded`].
    pub fn flat(&self, padded: &Tensor) -> Result<Vec<f64>> {
        let rows = padded.to_vec2::<f64>()?;
        let responses = rows.into_iter().zip(&self.samples);
        Ok(responses.flat_map(|(row, sample)| row.into_iter().take(sample.response.len())).collect())
    }
}

/// A sample's part of a flat array.
pub(super) fn slice<'v, T>(flat: &'v [T], sample: &Sample) -> Result<&'v [T]> {
    flat.get(sample.rows.clone())
        .ok_or_else(|| Error::train(format!("rows {:?} lie outside an array of {}", sample.rows, flat.len())))
}

/// The server tells them at temperature 1.
fn served_logprobs(rollout: &Rollout) -> Option<&[f32]> {
    let served = rollout.served_logprobs.as_deref()?;
    (rollout.temperature == 1.0 && served.len() <= rollout.response.len()).then_some(served)
}

fn check(rollout: &Rollout) -> Result<()> {
    if rollout.prompt.is_empty() {
        return Err(Error::arg("the prompt is empty, at least one token is expected"));
    }
    if rollout.response.is_empty() {
        return Err(Error::arg("the response is empty, at least one token is expected"));
    }
    if !rollout.score.is_finite() {
        return Err(Error::arg(format!("the score is {}, a finite number is expected", rollout.score)));
    }
    if let Some(floor) = rollout.advantage_floor.filter(|floor| !floor.is_finite()) {
        return Err(Error::arg(format!("the advantage is at least {floor}, a finite number is expected")));
    }
    if !(rollout.temperature.is_finite() && rollout.temperature >= 0.0) {
        return Err(Error::arg(format!("the temperature is {}, a number from 0 is expected", rollout.temperature)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(prompt: usize, response: usize, score: f64) -> Rollout {
        Rollout {
            prompt: vec![1; prompt],
            response: vec![2; response],
            temperature: 1.0,
            score,
            advantage_floor: None,
            served_logprobs: None,
        }
    }

    #[test]
    fn long_samples_are_left_out_and_counted() {
        let rollouts = [rollout(3, 4, 1.0), rollout(3, 5, 0.0), rollout(1, 1, 0.0)];
        let batch = Batch::new(&rollouts, 7).unwrap();
        assert_eq!((batch.samples.len(), batch.left_out, batch.rows()), (2, 1, 5));
        assert_eq!(batch.samples[1].rows, 4..5);
    }

    #[test]
    fn empty_responses_and_scores_that_are_no_numbers_are_refused() {
        for (bad, word) in
            [(rollout(1, 0, 0.0), "response"), (rollout(0, 1, 0.0), "prompt"), (rollout(1, 1, f64::NAN), "score")]
        {
            let e = Batch::new(&[rollout(1, 1, 0.0), bad], 9).err().unwrap();
            assert!(e.message().starts_with("sample 1: ") && e.message().contains(word), "{e}");
        }
        let cold = Rollout { temperature: 0.0, ..rollout(1, 1, 0.0) };
        assert_eq!(Batch::new(&[cold], 9).unwrap().samples[0].temperature, 1.0);
        let negative = Rollout { temperature: -1.0, ..rollout(1, 1, 0.0) };
        assert!(Batch::new(&[negative], 9).is_err());
    }

    #[test]
    fn groups_hold_at_most_the_tokens_asked_for_and_lose_no_sample() {
        let rollouts: Vec<_> = [4, 4, 20, 2, 6].iter().map(|n| rollout(1, *n, 0.0)).collect();
        let batch = Batch::new(&rollouts, 100).unwrap();
        assert_eq!(batch.split(&[0, 1, 2, 3, 4], 8), [vec![0, 1], vec![2], vec![3, 4]]);
        assert_eq!(batch.split(&[2, 0], 0), [vec![2], vec![0]]);
    }

    #[test]
    fn padding_and_back_keeps_every_row() {
        let rollouts = [rollout(1, 2, 0.0), rollout(1, 3, 1.0)];
        let batch = Batch::new(&rollouts, 9).unwrap();
        let flat = [1.0, 2.0, 3.0, 4.0, 5.0];
        let padded = batch.padded(&flat, &Device::Cpu).unwrap();
        assert_eq!(padded.to_vec2::<f64>().unwrap(), [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]);
        assert_eq!(batch.flat(&padded).unwrap(), flat);
        assert!(batch.padded(&flat[..3], &Device::Cpu).is_err());
    }
}
