//! Draws tokens from logits as a request asked. Never sees text.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;

use super::model::Model;
use crate::error::{Error, Result};
use crate::types::{Sampling, TokenId};

/// Tokens that penalties look back on.
const PENALTY_WINDOW: i32 = 64;

/// The sampler of one request: its own seed and its own memory of the tokens.
pub struct Sampler {
    chain: LlamaSampler,
    candidates: LlamaTokenDataArray,
}

impl Sampler {
    /// Builds the chain. `sampling` must have passed [`Sampler::check`] and have its seed set.
    pub fn new(model: &Model, sampling: &Sampling) -> Sampler {
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
        if sampling.temperature == 0.0 {
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
            // llama.cpp's generator takes 32 bits; fold so that no bit of the seed is ignored.
            let seed = sampling.seed.unwrap_or(0);
            chain.push(LlamaSampler::dist((seed ^ (seed >> 32)) as u32));
        }
        Sampler { chain: LlamaSampler::chain(chain, true), candidates: LlamaTokenDataArray::new(Vec::new(), false) }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// `Arg` naming the setting, its value and its range.
    pub fn check(sampling: &Sampling) -> Result<()> {
        let range = |name: &str, value: f32, low: f32, high: f32| {
            // Written so that NaN fails.
            if value >= low && value <= high {
                return Ok(());
            }
            Err(Error::arg(format!("{name} is {value}, expected {low} to {high}")))
        };
        range("temperature", sampling.temperature, 0.0, 10.0)?;
        range("top_p", sampling.top_p, 0.0, 1.0)?;
        range("min_p", sampling.min_p, 0.0, 1.0)?;
        range("repeat_penalty", sampling.repeat_penalty, 0.01, 10.0)?;
        range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
        range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    }

    /// Draws the next token from a row of logits. [vocabulary]
    ///
    /// # Errors
    /// `Model` if the logits are not numbers.
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId> {
        // A NaN makes llama.cpp's samplers assert or choose at random.
        if logits.iter().any(|l| l.is_nan()) {
            return Err(Error::model("the model's logits are not numbers"));
        }
        let c = &mut self.candidates;
        c.data.clear();
        c.data.extend((0..).zip(logits).map(|(id, &l)| LlamaTokenData::new(LlamaToken::new(id), l, 0.0)));
        c.selected = None;
        c.sorted = false;
        self.chain.apply(c);
        let token = c.selected_token().ok_or_else(|| Error::model("sampling selected no token"))?;
        self.chain.accept(token);
        TokenId::try_from(token.0).map_err(|_| Error::model("sampling selected no token"))
    }
}
