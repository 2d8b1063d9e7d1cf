//! Log-probabilities of tokens as llama.cpp computes them. Never samples.

use super::context::{Batch, Context};
use super::model::Model;
use crate::error::{Error, Result};
use crate::types::{Alternative, Nats, TokenId, TokenLogprob};

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

/// The log-probability of a token under the row it was sampled from, and of the `top` most probable tokens, under the
/// plain model at temperature 1: no penalties, biases or grammar. `logits` is [vocabulary], without NaN.
pub fn sampled_logprob(model: &Model, logits: &[f32], token: TokenId, top: usize) -> TokenLogprob {
    let norm = log_sum_exp(logits);
    let told = |(token, logit): (TokenId, f32)| {
        let mut bytes = Vec::new();
        model.piece(token, true, &mut bytes);
        // JSON has no infinity.
        let logprob = ((f64::from(logit) - norm) as f32).max(LEAST_LOGPROB);
        Alternative { id: token, token: String::from_utf8_lossy(&bytes).into_owned(), logprob, bytes }
    };
    let chosen = (token, logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let top_logprobs = most_probable(logits, top).into_iter().map(told).collect();
    TokenLogprob { chosen: told(chosen), top_logprobs }
}

/// KL divergence between the distributions of two rows of logits, in nats. [vocabulary] each
pub fn row_kl(of: &[f32], to: &[f32]) -> Nats {
    let (of_norm, to_norm) = (log_sum_exp(of), log_sum_exp(to));
    let terms = of.iter().zip(to).map(|(&a, &b)| {
        let logprob = f64::from(a) - of_norm;
        let term = logprob.exp() * (logprob - (f64::from(b) - to_norm));
        // A token of probability 0 adds nothing.
        if term.is_nan() { 0.0 } else { term }
    });
    Nats(terms.sum())
}

/// Stands for the log-probability of an impossible token, as in the OpenAI API.
const LEAST_LOGPROB: f32 = -9999.0;

/// The `count` largest logits, the largest first; of equals the first.
fn most_probable(logits: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut best: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    for (token, &logit) in (0..).zip(logits) {
        if best.len() < count || best.last().is_some_and(|(_, least)| logit > *least) {
            best.insert(best.partition_point(|(_, l)| *l >= logit), (token, logit));
            best.truncate(count);
        }
    }
    best
}

/// Logarithm of the sum of exponentials, in f64: 49,152 terms lose digits in f32.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Log-softmax of a row at one index.
fn log_softmax_at(logits: &[f32], index: usize) -> f32 {
    (f64::from(logits[index]) - log_sum_exp(logits)) as f32
}

#[cfg(test)]
mod tests {
    use super::{log_softmax_at, most_probable, row_kl};

    #[test]
    fn kl_of_known_rows_is_exact_and_shifts_change_nothing() {
        let (of, to) = ([1.0f32.ln(), 3.0f32.ln()], [1.0f32, 1.0]);
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((row_kl(&of, &to).0 - expected).abs() < 1e-6);
        assert!(row_kl(&[5.0, 6.0], &[15.0, 16.0]).0.abs() < 1e-9);
    }

    #[test]
    fn log_softmax_is_exact_on_a_known_row() {
        let row = [0.0f32, 2.0f32.ln(), 5.0f32.ln()];
        assert!((log_softmax_at(&row, 2) - (5.0f32 / 8.0).ln()).abs() < 1e-6);
        assert!((log_softmax_at(&[1000.0, 1000.0], 0) + 2.0f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_most_probable_come_first_and_no_more_than_asked_for() {
        let row = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(most_probable(&row, 3), [(1, 3.0), (3, 3.0), (2, 2.0)]);
        assert_eq!(most_probable(&row, 0), []);
        assert_eq!(most_probable(&row, 9).len(), 5);
    }
}
