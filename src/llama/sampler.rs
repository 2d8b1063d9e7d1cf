//! Samples tokens from logits as a request asks. Never sees text.

use std::ops::RangeInclusive;

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use super::model::Model;
use crate::error::{Error, Result};
use crate::guide::Mask;
use crate::types::{Sampling, TokenId};

/// Number of recent tokens that penalties apply to.
const PENALTY_WINDOW: i32 = 64;
/// Lower temperatures are greedy: a difference of a thousandth of a nat would already decide, and the divided logits
/// would overflow.
const LEAST_TEMPERATURE: f32 = 1e-6;

/// The sampler of one request, with its own seed and token history.
pub struct Sampler {
    chain: LlamaSampler,
    candidates: LlamaTokenDataArray,
    biases: Vec<(usize, f32)>,
    /// Tokens that are left out wherever there are others. [ascending]
    barred: Vec<TokenId>,
    /// Whether the most probable token is wanted, with nothing applied but biases.
    plain_greedy: bool,
}

impl Sampler {
    /// Builds the chain. `sampling` must have its seed set.
    ///
    /// # Errors
    /// `Arg` naming the setting, its value and its range, or the token that the vocabulary lacks.
    pub fn new(model: &Model, sampling: &Sampling) -> Result<Sampler> {
        Self::check(sampling)?;
        if let Some(token) = sampling.logit_bias.keys().find(|t| **t as usize >= model.n_vocab()) {
            return Err(Error::arg(format!(
                "logit_bias names token {token}, which is outside the vocabulary of {}",
                model.n_vocab()
            )));
        }
        let mut chain = Vec::new();
        let penalized =
            sampling.repeat_penalty != 1.0 || sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0;
        if penalized {
            chain.push(LlamaSampler::penalties(
                model.n_vocab() as i32,
                PENALTY_WINDOW,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            ));
        }
        let greedy = sampling.temperature < LEAST_TEMPERATURE;
        if greedy {
            chain.push(LlamaSampler::greedy());
        } else {
            if sampling.top_k > 0 {
                chain.push(LlamaSampler::top_k(i32::try_from(sampling.top_k).unwrap_or(i32::MAX)));
            }
            if sampling.top_p < 1.0 {
                chain.push(LlamaSampler::top_p(sampling.top_p, 1));
            }
            if sampling.min_p > 0.0 {
                chain.push(LlamaSampler::min_p(sampling.min_p, 1));
            }
            if sampling.temperature != 1.0 {
                chain.push(LlamaSampler::temp(sampling.temperature));
            }
            chain.push(LlamaSampler::dist(folded(sampling.seed.unwrap_or(0))));
        }
        Ok(Sampler {
            chain: LlamaSampler::chain(chain, true),
            candidates: LlamaTokenDataArray::new(Vec::new(), false),
            plain_greedy: greedy && !penalized && !sampling.ignore_eos,
            barred: if sampling.ignore_eos { model.end_tokens().collect() } else { Vec::new() },
            biases: sampling.logit_bias.iter().map(|(&token, &bias)| (token as usize, bias)).collect(),
        })
    }

    fn check(sampling: &Sampling) -> Result<()> {
        let range = |name: &str, value: f32, range: RangeInclusive<f32>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(Error::arg(format!("{name} is {value}, expected {} to {}", range.start(), range.end())))
        };
        range("temperature", sampling.temperature, Sampling::TEMPERATURE)?;
        range("top_p", sampling.top_p, Sampling::MASS)?;
        range("min_p", sampling.min_p, Sampling::MASS)?;
        range("repeat_penalty", sampling.repeat_penalty, Sampling::REPEAT_PENALTY)?;
        range("frequency_penalty", sampling.frequency_penalty, Sampling::PENALTY)?;
        range("presence_penalty", sampling.presence_penalty, Sampling::PENALTY)?;
        if sampling.logit_bias.len() > Sampling::MAX_BIASES {
            return Err(Error::arg(format!(
                "logit_bias has {} entries, expected at most {}",
                sampling.logit_bias.len(),
                Sampling::MAX_BIASES
            )));
        }
        sampling
            .logit_bias
            .iter()
            .try_for_each(|(token, &bias)| range(&format!("logit_bias of {token}"), bias, Sampling::BIAS))
    }

    /// Samples the next token from a row of logits, [vocabulary], among those in the mask if there is one.
    ///
    /// # Errors
    /// `Model` if the logits are not numbers.
    pub fn sample(&mut self, logits: &[f32], mask: Option<&Mask>) -> Result<TokenId> {
        // NaN makes llama.cpp's samplers assert or choose at random.
        if logits.iter().fold(false, |nan, l| nan | l.is_nan()) {
            return Err(Error::model("the model's logits are not numbers"));
        }
        let greedy = if self.plain_greedy && mask.is_none() { self.largest(logits) } else { None };
        let token = match greedy {
            Some(token) => token,
            None => self.draw(logits, mask)?,
        };
        self.chain.accept(LlamaToken::new(token as i32));
        Ok(token)
    }

    /// The token with the largest logit, biases included; of equal ones the first. Avoids the list of all candidates,
    /// which costs as much as several layers of a small model.
    fn largest(&self, logits: &[f32]) -> Option<TokenId> {
        let mut best: Option<(usize, f32)> = None;
        let mut begin = 0;
        let mut better = |index: usize, logit: f32| {
            if best.is_none_or(|(at, most)| logit > most || (logit == most && index < at)) {
                best = Some((index, logit));
            }
        };
        // Biases are sorted by token.
        for &(token, bias) in &self.biases {
            let (index, logit) = (token, *logits.get(token)?);
            if let Some((at, most)) = argmax(logits.get(begin..index)?) {
                better(begin + at, most);
            }
            better(index, logit + bias);
            begin = index + 1;
        }
        if let Some((at, most)) = argmax(logits.get(begin..)?) {
            better(begin + at, most);
        }
        best.and_then(|(index, _)| TokenId::try_from(index).ok())
    }

    fn draw(&mut self, logits: &[f32], mask: Option<&Mask>) -> Result<TokenId> {
        let c = &mut self.candidates;
        c.data.clear();
        let candidate = |id: usize| {
            let logit = logits.get(id).copied()?;
            Some(LlamaTokenData::new(LlamaToken::new(i32::try_from(id).ok()?), logit, 0.0))
        };
        match mask {
            None => c.data.extend((0..logits.len()).filter_map(candidate)),
            Some(mask) => c.data.extend(mask.tokens().filter_map(|token| candidate(token as usize))),
        }
        // Sorted by token, as the biases are.
        for &(token, bias) in &self.biases {
            if let Ok(at) = c.data.binary_search_by_key(&(token as i32), |entry| entry.id().0)
                && let Some(entry) = c.data.get_mut(at)
            {
                entry.set_logit(entry.logit() + bias);
            }
        }
        let barred = |entry: &LlamaTokenData| {
            TokenId::try_from(entry.id().0).is_ok_and(|token| self.barred.binary_search(&token).is_ok())
        };
        if !self.barred.is_empty() && !c.data.iter().all(barred) {
            c.data.retain(|entry| !barred(entry));
        }
        c.selected = None;
        c.sorted = false;
        self.chain.apply(c);
        let token = c.selected_token().ok_or_else(|| Error::model("sampling selected no token"))?;
        TokenId::try_from(token.0).map_err(|_| Error::model("sampling selected no token"))
    }
}

/// Folds all 64 bits of a seed into the 32 that llama.cpp's generator takes, as in splitmix64. Small seeds are
/// unchanged; 32 ones are avoided, since they stand for a random seed.
fn folded(seed: u64) -> u32 {
    match u32::try_from(seed) {
        Ok(small) if small != u32::MAX => small,
        _ => {
            let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((mixed ^ (mixed >> 31)) >> 32) as u32).min(u32::MAX - 1)
        }
    }
}

/// Size of the blocks in which the largest value is searched.
const BLOCK: usize = 1024;

/// The first largest value and its index. Only the block that holds it is searched for the index.
fn argmax(values: &[f32]) -> Option<(usize, f32)> {
    let mut best: Option<(usize, f32)> = None;
    for (number, block) in values.chunks(BLOCK).enumerate() {
        let most = largest_of(block);
        if best.is_none_or(|(_, before)| most > before) {
            best = Some((number, most));
        }
    }
    let (number, most) = best?;
    let begin = number * BLOCK;
    let place = values.get(begin..)?.iter().position(|v| *v == most)?;
    Some((begin + place, most))
}

/// In lanes, so that the compiler vectorizes it.
fn largest_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 64];
    let chunks = values.chunks_exact(lanes.len());
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{BLOCK, argmax, folded};

    #[test]
    fn no_seed_stands_for_chance_and_negative_ones_differ() {
        let odd = [u64::MAX, u64::MAX - 1, 1 << 63, 18446744069414584320, (-4294967296i64) as u64, u64::from(u32::MAX)];
        let mut seeds: Vec<u64> = odd.into_iter().chain(0..100).chain((1..100i64).map(|n| (-n) as u64)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let folded: HashSet<u32> = seeds.iter().map(|seed| folded(*seed)).collect();
        assert!(folded.len() == seeds.len() && !folded.contains(&u32::MAX));
        assert_eq!(super::folded(7), 7);
    }

    #[test]
    fn the_first_of_the_largest_is_found_wherever_it_is() {
        for len in [1, 15, 16, 17, 100, BLOCK, BLOCK + 1, 3 * BLOCK + 70] {
            for at in [0, len / 2, len - 1] {
                let mut values = vec![-1.0f32; len];
                values[at] = 3.0;
                assert_eq!(argmax(&values), Some((at, 3.0)), "{len}");
                values[len - 1] = 3.0;
                assert_eq!(argmax(&values), Some((at, 3.0)), "{len}");
            }
        }
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20]), Some((0, f32::NEG_INFINITY)));
    }
}
