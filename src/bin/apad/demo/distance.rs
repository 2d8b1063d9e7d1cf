//! Measures a version's KL to the initial model on its own answers, with the trainer's decoder. Changes no weight.

use anyhow::Result;
use apa::config::Config;
use apa::forecast;
use apa::policy::{self, Lora, Packed};
use apa::publish::VersionStore;
use apa::trainer::ADAPTER_FILE;
use apa::types::{Generation, Nats, PolicyVersion, TokenId};
use candle_core::DType;

/// Answers of one forward pass; bounds its memory.
const AT_ONCE: usize = 8;

/// KL of `version` to the initial model: k1 summed over a response, mean over `answers`, which `version` sampled.
pub fn kl_per_response(config: &Config, version: PolicyVersion, answers: &[Generation]) -> Result<Nats> {
    if version == PolicyVersion::INITIAL {
        return Ok(Nats(0.0));
    }
    let decoder = forecast::load(&config.model, &config.train, None, &policy::device(&config.train.device)?)?;
    let adapter = VersionStore::open(&config.data)?.path(version).join(ADAPTER_FILE);
    let lora = Lora::read_gguf(&adapter, &decoder)?;
    let mut total = 0.0;
    for group in answers.chunks(AT_ONCE) {
        let sequences: Vec<Vec<TokenId>> = group.iter().map(|g| [&g.prompt[..], &g.response].concat()).collect();
        let prompts: Vec<usize> = group.iter().map(|g| g.prompt.len()).collect();
        let temperatures: Vec<f32> = group.iter().map(|g| g.sampling.temperature).collect();
        let packed = Packed::new(&sequences)?;
        let targets = packed.targets(&prompts)?;
        let logprobs = decoder.response_logprobs(&packed, &targets, &temperatures, Some(&lora))?;
        let ref_logprobs = decoder.response_logprobs(&packed, &targets, &temperatures, None)?;
        total += (logprobs - ref_logprobs)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    }
    Ok(Nats(total / answers.len().max(1) as f64))
}
