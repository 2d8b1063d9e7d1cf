//! Generalized advantage estimation over a padded batch. Its results are constants: no gradient flows through them.

use candle_core::Tensor;

use super::same_shapes;
use crate::error::{Error, Result};

/// Advantages and returns, both `[batch, time]`, 0 off the mask.
///
/// `δ_t = r_t + γ V(t+1) − V(t)`, `A_t = δ_t + γ λ A_{t+1}`, `R_t = A_t + V(t)`; V and A after a response's last token
/// are 0. docs/APA.md eq. 2; Schulman et al., arXiv 1506.02438. Rewards, values and mask are `[batch, time]`, padding
/// on the right.
///
/// # Errors
/// `Arg` if a shape is not the mask's or not `[batch, time]` with at least one position.
pub fn gae(rewards: &Tensor, values: &Tensor, mask: &Tensor, gamma: f64, gae_lambda: f64) -> Result<(Tensor, Tensor)> {
    same_shapes(&[("rewards", rewards), ("values", values)], mask)?;
    let time = batch_time(mask)?;
    let (values, mask) = (values.detach().mul(mask)?, mask.detach());
    let deltas = ((rewards.detach() + (shift_left(&values)? * gamma)?)? - &values)?.mul(&mask)?;
    // Backwards in time, all responses at once; on padding the carried advantage is 0, so each response starts clean.
    let mut carried = deltas.narrow(1, time - 1, 1)?.contiguous()?;
    let mut columns = vec![carried.clone()];
    for t in (0..time - 1).rev() {
        carried = (deltas.narrow(1, t, 1)? + (carried * (gamma * gae_lambda))?)?;
        columns.push(carried.clone());
    }
    columns.reverse();
    let advantages = Tensor::cat(&columns, 1)?.mul(&mask)?; // [batch, time]
    let returns = (&advantages + values)?;
    Ok((advantages, returns))
}

/// Rewards `[batch, time]`, zero except at each response's last token, which gets its score. `scores` is `[batch]`, the
/// mask `[batch, time]` with padding on the right.
///
/// # Errors
/// `Arg` if the shapes do not fit.
pub fn terminal_rewards(scores: &Tensor, mask: &Tensor) -> Result<Tensor> {
    batch_time(mask)?;
    if scores.dims() != &mask.dims()[..1] {
        return Err(Error::arg(format!("scores have shape {:?}, the mask {:?}", scores.dims(), mask.dims())));
    }
    let last = (mask - shift_left(mask)?)?;
    Ok(last.broadcast_mul(&scores.unsqueeze(1)?)?)
}

/// `x[:, t+1]` at t, 0 at the end.
fn shift_left(x: &Tensor) -> Result<Tensor> {
    let time = batch_time(x)?;
    Ok(x.narrow(1, 1, time - 1)?.pad_with_zeros(1, 0, 1)?)
}

fn batch_time(x: &Tensor) -> Result<usize> {
    match x.dims() {
        [batch, time] if *batch > 0 && *time > 0 => Ok(*time),
        other => Err(Error::arg(format!("shape {other:?} where [batch, time] with at least one position is expected"))),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    /// The recurrence on one response, as it stands in the paper.
    fn plain(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> (Vec<f64>, Vec<f64>) {
        let mut advantages = vec![0.0; values.len()];
        let mut after = 0.0;
        for t in (0..values.len()).rev() {
            let next = values.get(t + 1).copied().unwrap_or(0.0);
            after = rewards[t] + gamma * next - values[t] + gamma * lambda * after;
            advantages[t] = after;
        }
        let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
        (advantages, returns)
    }

    proptest! {
        #[test]
        fn a_plain_loop_gives_what_the_batched_one_gives(
            lengths in prop::collection::vec(1usize..12, 1..6),
            numbers in prop::collection::vec(-3.0..3.0f64, 2 * 12 * 6),
            gamma in 0.5..1.0f64,
            lambda in 0.0..1.0f64,
        ) {
            let time = *lengths.iter().max().unwrap();
            let shape = (lengths.len(), time);
            let n = shape.0 * time;
            let tensor = |v: &[f64]| Tensor::from_slice(v, shape, &Device::Cpu).unwrap();
            // Padding is full of numbers on purpose: the mask must keep them out.
            let (rewards, values) = (&numbers[..n], &numbers[n..2 * n]);
            let of_row = |l: &usize| (0..time).map(|t| f64::from(u8::from(t < *l))).collect::<Vec<f64>>();
            let mask: Vec<f64> = lengths.iter().flat_map(of_row).collect();
            let (a, r) = gae(&tensor(rewards), &tensor(values), &tensor(&mask), gamma, lambda).unwrap();
            let (a, r) = (a.to_vec2::<f64>().unwrap(), r.to_vec2::<f64>().unwrap());
            for (i, length) in lengths.iter().enumerate() {
                let row = i * time..i * time + length;
                let (pa, pr) = plain(&rewards[row.clone()], &values[row], gamma, lambda);
                for t in 0..time {
                    let (ea, er) = if t < *length { (pa[t], pr[t]) } else { (0.0, 0.0) };
                    prop_assert!((a[i][t] - ea).abs() < 1e-12 && (r[i][t] - er).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn the_score_lands_on_the_last_response_token() {
        let mask = Tensor::new(&[[1.0f32, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let scores = Tensor::new(&[2.0f32, -1.0, 0.5], &Device::Cpu).unwrap();
        let rewards = terminal_rewards(&scores, &mask).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rewards, [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0], [0.5, 0.0, 0.0]]);
    }
}
