//! REINFORCE with each answer compared with the others to its prompt. Holds no state, and never sees a tensor.

use std::collections::HashMap;
use std::hash::Hash;

/// Leave-one-out advantages: each score less the mean of the others of its group. A score alone in its group is
/// returned as it is. docs/APA.md eq. 10; Kool et al. 2019, Ahmadian et al., arXiv 2402.14740. One group a score.
pub fn leave_one_out<G: Hash + Eq + Copy>(scores: &[f64], groups: &[G]) -> Vec<f64> {
    let mut sums: HashMap<G, (f64, f64)> = HashMap::new();
    for (score, group) in scores.iter().zip(groups) {
        let (sum, count) = sums.entry(*group).or_default();
        *sum += score;
        *count += 1.0;
    }
    let advantage = |(score, group): (&f64, &G)| match sums.get(group) {
        Some((sum, count)) if *count > 1.0 => score - (sum - score) / (count - 1.0),
        _ => *score,
    };
    scores.iter().zip(groups).map(advantage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_told_from_the_others_of_its_group() {
        let advantages = leave_one_out(&[1.0, 4.0, -2.0, 0.5, 3.0], &["a", "b", "a", "c", "a"]);
        assert_eq!(advantages, [1.0 - 0.5, 4.0, -2.0 - 2.0, 0.5, 3.0 + 0.5]);
        assert!(leave_one_out::<u8>(&[], &[]).is_empty());
    }
}
