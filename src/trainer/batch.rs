//! Prepares a batch: checks samples, truncates long ones to their last part, and lays them out in rows of response
//! tokens. Never computes a forward pass.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::types::{PolicyVersion, Rollout, TokenId};

/// Temperatures below this are practically greedy and would overflow the logits; such samples are trained at 1.
const GREEDY_BELOW: f32 = 0.01;

/// One sample and its rows in the batch's flat arrays, one per response token.
pub(super) struct Sample<'a> {
    pub prompt: &'a [TokenId],
    pub response: &'a [TokenId],
    /// Divides the logits; greedy answers are trained at 1.
    pub temperature: f32,
    pub score: f64,
    pub advantage_floor: Option<f64>,
    /// Those of the server, if they are of this temperature.
    pub served_logprobs: Option<&'a [f32]>,
    pub version: Option<PolicyVersion>,
    /// Those of the policy that sampled it, if it is another one; one per token.
    pub behavior_logprobs: Option<&'a [f32]>,
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

/// Samples to train on, with response tokens numbered consecutively.
pub(super) struct Batch<'a> {
    pub samples: Vec<Sample<'a>>,
    /// Number of samples that were truncated.
    pub shortened: usize,
}

impl<'a> Batch<'a> {
    /// Checks every rollout, and truncates longer ones to their last `max_tokens`: the end of the prompt that fits
    /// before the response, or, if the response fills it all, the response's last part with one token before it.
    ///
    /// # Errors
    /// `Arg` for an empty prompt or response, or a score or temperature that is NaN.
    pub fn new(rollouts: &'a [Rollout], max_tokens: usize) -> Result<Self> {
        let mut batch = Batch { samples: Vec::with_capacity(rollouts.len()), shortened: 0 };
        for (i, rollout) in rollouts.iter().enumerate() {
            check(rollout).map_err(|e| e.context(format!("sample {i}")))?;
            let (prompt, response) = last_part(rollout, max_tokens.max(2));
            let whole = prompt.len() == rollout.prompt.len() && response.len() == rollout.response.len();
            batch.shortened += usize::from(!whole);
            let start = batch.rows();
            let behavior = rollout.behavior_logprobs.as_deref();
            batch.samples.push(Sample {
                prompt,
                response,
                temperature: if rollout.temperature < GREEDY_BELOW { 1.0 } else { rollout.temperature },
                score: rollout.score,
                advantage_floor: rollout.advantage_floor,
                served_logprobs: served_logprobs(rollout).filter(|_| whole),
                version: rollout.version,
                behavior_logprobs: behavior.and_then(|all| all.get(all.len().checked_sub(response.len())?..)),
                rows: start..start + response.len(),
            });
        }
        Ok(batch)
    }

    /// Number of response tokens.
    pub fn rows(&self) -> usize {
        self.samples.last().map_or(0, |s| s.rows.end)
    }

    /// Indices of all samples.
    pub fn all(&self) -> Vec<usize> {
        (0..self.samples.len()).collect()
    }

    /// Scores of all samples.
    pub fn scores(&self) -> Vec<f64> {
        self.samples.iter().map(|s| s.score).collect()
    }

    /// Samples in groups of at most `tokens` input tokens.
    pub fn micro_batches(&self, order: &[usize], tokens: usize) -> Vec<Vec<&Sample<'a>>> {
        self.split(order, tokens).iter().map(|group| self.group(group)).collect()
    }

    /// Splits samples (indices, in this order) into groups of at most `tokens` input tokens; a longer sample is alone.
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

    /// Flat rows `[rows]` as a padded `[batch, time]` tensor, in f64, which is exact and cheap for so few numbers.
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

/// The last `most` tokens of prompt and response, with at least one of each.
fn last_part(rollout: &Rollout, most: usize) -> (&[TokenId], &[TokenId]) {
    let (prompt, response) = (&rollout.prompt[..], &rollout.response[..]);
    let over = (prompt.len() + response.len()).saturating_sub(most);
    if over < prompt.len() {
        return (&prompt[over..], response);
    }
    let (before, last) = response.split_at(response.len() - (most - 1));
    // If there is no room for the prompt's last token, the response starts from the token before its last part.
    (before.last_chunk::<1>().map_or(&prompt[prompt.len() - 1..], |token| &token[..]), last)
}

/// A sample's slice of a flat array.
pub(super) fn slice<'v, T>(flat: &'v [T], sample: &Sample) -> Result<&'v [T]> {
    flat.get(sample.rows.clone())
        .ok_or_else(|| Error::train(format!("rows {:?} lie outside an array of {}", sample.rows, flat.len())))
}

/// The server's log-probabilities are of temperature 1.
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
    if let Some(logprobs) = rollout.behavior_logprobs.as_ref().filter(|own| own.len() != rollout.response.len()) {
        let (got, expected) = (logprobs.len(), rollout.response.len());
        return Err(Error::arg(format!(
            "there are {got} behavior_logprobs, expected one a response token: {expected}"
        )));
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
            version: None,
            behavior_logprobs: None,
        }
    }

    #[test]
    fn of_long_samples_the_last_part_is_kept_and_they_are_counted() {
        let counted = |prompt: u32, response: u32| Rollout {
            prompt: (0..prompt).collect(),
            response: (100..100 + response).collect(),
            behavior_logprobs: Some((0..response).map(|t| t as f32).collect()),
            ..rollout(1, 1, 1.0)
        };
        let rollouts = [counted(3, 4), counted(3, 5), counted(4, 7), counted(2, 9), counted(1, 1)];
        let batch = Batch::new(&rollouts, 7).unwrap();
        assert_eq!((batch.samples.len(), batch.shortened, batch.rows()), (5, 3, 4 + 5 + 6 + 6 + 1));
        let part = |i: usize| (batch.samples[i].prompt.to_vec(), batch.samples[i].response[0]);
        assert_eq!(part(0), (vec![0, 1, 2], 100));
        assert_eq!(part(1), (vec![1, 2], 100));
        // The response fills it, so it starts from its own token before.
        assert_eq!(part(2), (vec![100], 101));
        assert_eq!(part(3), (vec![102], 103));
        assert!(batch.samples.iter().all(|s| s.input_tokens() < 7));
        assert_eq!(batch.samples[3].behavior_logprobs.unwrap(), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(batch.samples[1].rows, 4..9);
        // A response one token shorter than the limit starts from the prompt's last token.
        let exact = [counted(4, 6)];
        assert_eq!(Batch::new(&exact, 7).unwrap().samples[0].prompt, [3]);
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
