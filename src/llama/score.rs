//! Log-probabilities of given tokens, as llama.cpp computes them. Never samples.

use super::context::{Batch, Context};
use crate::error::{Error, Result};
use crate::types::TokenId;

/// The log-probability of each token after the first, in nats. [tokens - 1]
///
/// # Errors
/// `Arg` for fewer than two tokens, for more than the context holds, or for one outside the vocabulary.
pub fn token_logprobs(context: &mut Context, tokens: &[TokenId]) -> Result<Vec<f32>> {
    let options = context.options();
    if tokens.len() < 2 {
        return Err(Error::arg(format!("{} tokens, expected at least 2", tokens.len())));
    }
    if tokens.len() > options.context as usize {
        return Err(Error::arg(format!("{} tokens, the context holds {}", tokens.len(), options.context)));
    }
    context.forget(0, 0);
    let mut logprobs = Vec::with_capacity(tokens.len() - 1);
    let mut batch = Batch::default();
    let inputs = &tokens[..tokens.len() - 1];
    for (i, chunk) in inputs.chunks(options.batch as usize).enumerate() {
        let first = i * options.batch as usize;
        batch.clear();
        for (j, &token) in chunk.iter().enumerate() {
            context.model().token(token)?;
            batch.add(token, (first + j) as u32, 0, true);
        }
        if !context.decode(&batch)? {
            return Err(Error::model("the context has no room left"));
        }
        for j in 0..chunk.len() {
            let target = tokens[first + j + 1];
            context.model().token(target)?;
            logprobs.push(log_softmax_at(context.logits(j)?, target as usize));
        }
    }
    context.forget(0, 0);
    Ok(logprobs)
}

/// Log-softmax of a row at one index, summed in f64: 49,152 terms lose digits in f32.
fn log_softmax_at(logits: &[f32], index: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    (f64::from(logits[index] - max) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::log_softmax_at;

    #[test]
    fn log_softmax_is_exact_on_a_known_row() {
        let row = [0.0f32, 2.0f32.ln(), 5.0f32.ln()];
        assert!((log_softmax_at(&row, 2) - (5.0f32 / 8.0).ln()).abs() < 1e-6);
        assert!((log_softmax_at(&[1000.0, 1000.0], 0) + 2.0f32.ln()).abs() < 1e-6);
    }
}
