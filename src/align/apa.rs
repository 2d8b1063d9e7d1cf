//! The APA loss: squared distance to the target policy that the advantages define. Never touches the reference's
//! weights.

use candle_core::{DType, Tensor};

use super::{masked_mean, same_shapes, sum_per_response};
use crate::error::{Error, Result};

/// APA loss `mean((logprobs − A/λ − ref_logprobs)²)`, docs/APA.md eq. 6; arXiv 2306.02231. Scalar.
///
/// All of one shape. The target policy is π_init · exp(A/λ), so `lambda` (positive) is the one knob for drift.
/// Gradients flow to `logprobs` alone.
///
/// # Errors
/// `Arg` if shapes differ or the mask is empty.
pub fn apa_loss(
    logprobs: &Tensor,
    ref_logprobs: &Tensor,
    advantages: &Tensor,
    mask: &Tensor,
    lambda: f64,
) -> Result<Tensor> {
    same_shapes(&[("logprobs", logprobs), ("ref_logprobs", ref_logprobs), ("advantages", advantages)], mask)?;
    let target = (ref_logprobs.detach() + (advantages.detach() / lambda)?)?;
    masked_mean(&(logprobs - target)?.sqr()?, mask)
}

/// APA loss with the whole answer as the action, the contextual bandit of the paper, docs/APA.md eq. 7. Scalar.
///
/// `mean_i ((Σ_t (logprobs − ref_logprobs) / T_i^p − η A_i)²)` over the responses i, T_i being the tokens of one.
/// `logprobs` and `ref_logprobs` are `[batch, time]` with their mask; `advantages` is `[batch]`, one number an answer.
/// `nats_per_reward` is η, positive: the target policy makes a whole answer η nats likelier for each unit of advantage.
/// `length_power` is p, from 0 to 1: at 0 that holds whatever the length; at 1 it holds for the mean per token, so an
/// answer of T tokens may move T times as far. Gradients flow to `logprobs` alone.
///
/// # Errors
/// `Arg` if shapes differ, or a response has no token.
pub fn apa_response_loss(
    logprobs: &Tensor,
    ref_logprobs: &Tensor,
    advantages: &Tensor,
    mask: &Tensor,
    nats_per_reward: f64,
    length_power: f64,
) -> Result<Tensor> {
    same_shapes(&[("logprobs", logprobs), ("ref_logprobs", ref_logprobs)], mask)?;
    let moved = sum_per_response(&(logprobs - ref_logprobs.detach())?, mask)?; // [batch], nats
    if advantages.dims() != moved.dims() {
        let (got, expected) = (advantages.dims(), moved.dims());
        return Err(Error::arg(format!("advantages have shape {got:?}, {expected:?} is expected: one an answer")));
    }
    let lengths = mask.detach().sum(1)?; // [batch], tokens
    if lengths.to_dtype(DType::F64)?.to_vec1::<f64>()?.iter().any(|tokens| *tokens <= 0.0) {
        return Err(Error::arg("a response has no token in the mask, at least one is expected"));
    }
    let moved = moved.div(&lengths.powf(length_power)?)?;
    Ok((moved - (advantages.detach() * nats_per_reward)?)?.sqr()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Tensor, Var};

    use super::*;

    fn log_softmax(logits: &Tensor) -> Tensor {
        let max = logits.max_keepdim(D::Minus1).unwrap();
        let shifted = logits.broadcast_sub(&max).unwrap();
        let norm = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
        shifted.broadcast_sub(&norm).unwrap()
    }

    /// On samples of the current policy, ∇L_apa = 2 (∇KL(π‖π_init) − (1/λ) · policy gradient). Every token is
    /// enumerated and weighted by its probability, so the expectation is exact.
    #[test]
    fn the_gradient_on_policy_is_that_of_kl_minus_reward_over_lambda() {
        let lambda = 0.3;
        let logits = Var::new(&[0.3f64, -1.2, 0.8, 0.05, -0.4, 1.7], &Device::Cpu).unwrap();
        let reference = log_softmax(&Tensor::new(&[0.1f64, 0.4, -0.9, 1.1, -0.2, 0.6], &Device::Cpu).unwrap());
        let advantages = Tensor::new(&[1.0f64, -0.5, 0.25, 2.0, -1.5, 0.1], &Device::Cpu).unwrap();

        let logprobs = log_softmax(logits.as_tensor());
        let probs = logprobs.exp().unwrap();
        let grad =
            |loss: Tensor| loss.backward().unwrap().remove(logits.as_tensor()).unwrap().to_vec1::<f64>().unwrap();

        let apa = grad(apa_loss(&logprobs, &reference, &advantages, &probs.detach(), lambda).unwrap());
        let kl = grad((&probs * (&logprobs - &reference).unwrap()).unwrap().sum_all().unwrap());
        let reward = grad((&probs * &advantages).unwrap().sum_all().unwrap());

        for ((apa, kl), reward) in apa.iter().zip(kl).zip(reward) {
            let expected = 2.0 * (kl - reward / lambda);
            assert!((apa - expected).abs() < 1e-12, "{apa} is not {expected}");
            assert!(apa.abs() > 1e-3, "the check would hold for nothing");
        }
    }

    #[test]
    fn the_minimum_is_the_reference_tilted_by_the_advantages() {
        let reference = Tensor::new(&[-1.0f64, -2.0], &Device::Cpu).unwrap();
        let advantages = Tensor::new(&[0.5f64, -0.25], &Device::Cpu).unwrap();
        let mask = reference.ones_like().unwrap();
        let target = Tensor::new(&[-1.0 + 5.0, -2.0 - 2.5f64], &Device::Cpu).unwrap();
        let at = |x: &Tensor| super::super::scalar(&apa_loss(x, &reference, &advantages, &mask, 0.1).unwrap()).unwrap();
        assert!(at(&target) < 1e-24);
        assert!((at(&reference) - (25.0 + 6.25) / 2.0).abs() < 1e-12);
    }

    /// Answers of two tokens over two words, all enumerated and weighted by their probability.
    #[test]
    fn the_response_loss_on_policy_has_the_gradient_of_kl_minus_reward() {
        let nats = 3.0;
        let dev = &Device::Cpu;
        let first = Var::new(&[0.3f64, -0.4], dev).unwrap();
        let second = Var::new(&[[0.9f64, 0.1], [-0.7, 0.2]], dev).unwrap();
        let rewards = [0.5f64, -1.0, 2.0, 0.25];
        let by_row = |x: &Tensor| {
            let max = x.max_keepdim(D::Minus1).unwrap();
            let shifted = x.broadcast_sub(&max).unwrap();
            let norm = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
            shifted.broadcast_sub(&norm).unwrap()
        };
        let answers = |first: &Tensor, second: &Tensor| {
            let (first, second) = (by_row(&first.unsqueeze(0).unwrap()).squeeze(0).unwrap(), by_row(second));
            let token = |x: &Tensor, i: usize| x.narrow(0, i, 1).unwrap();
            let rows: Vec<Tensor> = [(0, 0), (0, 1), (1, 0), (1, 1)]
                .iter()
                .map(|(a, b)| Tensor::cat(&[token(&first, *a), token(&second.get(*a).unwrap(), *b)], 0).unwrap())
                .collect();
            Tensor::stack(&rows, 0).unwrap() // [4, 2]
        };
        let logprobs = answers(first.as_tensor(), second.as_tensor());
        let reference = answers(
            &Tensor::new(&[0.1f64, 0.6], dev).unwrap(),
            &Tensor::new(&[[0.2f64, 0.5], [0.3, -0.3]], dev).unwrap(),
        )
        .detach();
        let probs = logprobs.sum(1).unwrap().exp().unwrap().detach();
        let grad = |loss: &Tensor| {
            let mut store = loss.backward().unwrap();
            let mut both = store.remove(first.as_tensor()).unwrap().to_vec1::<f64>().unwrap();
            both.extend(store.remove(second.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap());
            both
        };
        // The mean over answers becomes the expectation over the policy: each answer's own loss by its probability.
        let mask = Tensor::ones((1, 2), candle_core::DType::F64, dev).unwrap();
        let mut loss = Tensor::new(0f64, dev).unwrap();
        for (i, reward) in rewards.iter().enumerate() {
            let row = |x: &Tensor| x.narrow(0, i, 1).unwrap();
            let advantage = Tensor::new(&[*reward], dev).unwrap();
            let own = apa_response_loss(&row(&logprobs), &row(&reference), &advantage, &mask, nats, 0.0).unwrap();
            loss = (loss + (own * probs.to_vec1::<f64>().unwrap()[i]).unwrap()).unwrap();
        }
        let total = logprobs.sum(1).unwrap();
        let kl = (total.exp().unwrap() * (&total - reference.sum(1).unwrap()).unwrap()).unwrap().sum_all().unwrap();
        let reward = (total.exp().unwrap() * Tensor::new(&rewards, dev).unwrap()).unwrap().sum_all().unwrap();
        for ((apa, kl), reward) in grad(&loss).iter().zip(grad(&kl)).zip(grad(&reward)) {
            let expected = 2.0 * (kl - nats * reward);
            assert!((apa - expected).abs() < 1e-12, "{apa} is not {expected}");
            assert!(apa.abs() > 1e-3, "the check would hold for nothing");
        }
    }

    #[test]
    fn the_length_power_says_whether_the_answer_or_its_tokens_move_so_far() {
        let dev = &Device::Cpu;
        let reference = Tensor::zeros((2, 4), candle_core::DType::F64, dev).unwrap();
        let mask = Tensor::new(&[[1f64, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]], dev).unwrap();
        let advantages = Tensor::new(&[0.5f64, 0.5], dev).unwrap();
        let at = |moved: [f64; 2], power| {
            let logprobs = Tensor::new(&[[moved[0] / 4.0; 4], [moved[1], 9.0, 9.0, 9.0]], dev).unwrap();
            let loss = apa_response_loss(&logprobs, &reference, &advantages, &mask, 6.0, power).unwrap();
            super::super::scalar(&loss).unwrap()
        };
        // Both answers are 3 nats likelier as a whole, or both 3 nats a token, or in between.
        assert!(at([3.0, 3.0], 0.0) < 1e-24 && at([12.0, 3.0], 1.0) < 1e-24 && at([6.0, 3.0], 0.5) < 1e-24);
        assert!((at([3.0, 3.0], 1.0) - 0.5 * (0.75f64 - 3.0).powi(2)).abs() < 1e-12);
    }

    #[test]
    fn one_advantage_an_answer_is_expected() {
        let x = Tensor::zeros((2, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
        let e = apa_response_loss(&x, &x, &x, &x.ones_like().unwrap(), 1.0, 0.0).unwrap_err();
        assert_eq!(e.message(), "advantages have shape [2, 3], [2] is expected: one an answer");
        let each = Tensor::zeros(2, candle_core::DType::F64, &Device::Cpu).unwrap();
        assert!(apa_response_loss(&x, &x, &each, &x, 1.0, 0.0).unwrap_err().message().contains("no token"));
    }
}
