//! Measures a version with the trainer's decoder: its KL to the initial model on its own answers, and how well both
//! still know plain text that has nothing to do with the taste. Changes no weight.

use anyhow::Result;
use apa::config::Config;
use apa::forecast;
use apa::policy::{self, Decoder, Lora, Packed};
use apa::publish::VersionStore;
use apa::trainer::ADAPTER_FILE;
use apa::types::{Generation, Nats, PolicyVersion, TokenId};
use candle_core::{DType, Tensor};

/// Sequences of one forward pass; bounds its memory.
const AT_ONCE: usize = 8;

/// Plain sentences of everyday English, which no version was rated on, a line each.
const TEXTS: &str = include_str!("texts.txt");

/// The plain sentences.
pub fn texts() -> impl Iterator<Item = &'static str> {
    TEXTS.lines()
}

/// What a version and the initial model are to each other.
pub struct Distance {
    /// KL of the version to the initial model: k1 summed over a response, mean over the answers.
    pub kl_per_response: Nats,
    /// Mean log-probability a token of the plain sentences, in nats: under the initial model, and under the version.
    pub text_logprobs: [f64; 2],
}

/// A version's distance, on `answers`, which it sampled, and on `texts`, tokens of the plain sentences.
pub fn measure(
    config: &Config,
    version: PolicyVersion,
    answers: &[Generation],
    texts: &[Vec<TokenId>],
) -> Result<Distance> {
    let decoder = forecast::load(&config.model, &config.train, None, &policy::device(&config.train.device)?)?;
    let lora = match version {
        PolicyVersion::INITIAL => None,
        _ => Some(Lora::read_gguf(&VersionStore::open(&config.data)?.path(version).join(ADAPTER_FILE), &decoder)?),
    };
    let mut total = 0.0;
    for group in answers.chunks(AT_ONCE) {
        let sequences: Vec<Vec<TokenId>> = group.iter().map(|g| [&g.prompt[..], &g.response].concat()).collect();
        let prompts: Vec<usize> = group.iter().map(|g| g.prompt.len()).collect();
        let temperatures: Vec<f32> = group.iter().map(|g| g.sampling.temperature).collect();
        let [initial, own] = both(&decoder, lora.as_ref(), &sequences, &prompts, &temperatures)?;
        total += own.sum - initial.sum;
    }
    // The first token has nothing before it that could foretell it.
    let texts: Vec<Vec<TokenId>> = texts.iter().filter(|text| text.len() > 1).cloned().collect();
    let (mut sums, mut tokens) = ([0.0; 2], 0);
    for group in texts.chunks(AT_ONCE) {
        let of = both(&decoder, lora.as_ref(), group, &vec![1; group.len()], &vec![1.0; group.len()])?;
        tokens += of[0].tokens;
        sums.iter_mut().zip(of).for_each(|(sum, part)| *sum += part.sum);
    }
    Ok(Distance {
        kl_per_response: Nats(total / answers.len().max(1) as f64),
        text_logprobs: sums.map(|sum| sum / tokens.max(1) as f64),
    })
}

/// Log-probabilities of some tokens, summed, in nats.
struct Sum {
    sum: f64,
    tokens: usize,
}

/// What follows the prompts, under the initial model and under the adapter.
fn both(
    decoder: &Decoder,
    lora: Option<&Lora>,
    sequences: &[Vec<TokenId>],
    prompts: &[usize],
    temperatures: &[f32],
) -> Result<[Sum; 2]> {
    let packed = Packed::new(sequences)?;
    let targets = packed.targets(prompts)?;
    let sum = |logprobs: Tensor| -> Result<Sum> {
        let tokens = logprobs.elem_count();
        Ok(Sum { sum: logprobs.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?, tokens })
    };
    let initial = sum(decoder.response_logprobs(&packed, &targets, temperatures, None)?)?;
    let own = match lora {
        Some(lora) => sum(decoder.response_logprobs(&packed, &targets, temperatures, Some(lora))?)?,
        None => Sum { ..initial },
    };
    Ok([initial, own])
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_enough_text_to_see_a_policy_that_has_come_apart() {
        assert!(super::texts().count() >= 24 && super::texts().all(|text| text.len() > 40));
    }
}
