//! How certain it is that a reward model ranks answers correctly: lower confidence bounds on shares of pairs. Never
//! computes a score.

/// Standard normal quantile of a one-sided 95%.
const SURE: f64 = 1.645;

/// A 95% lower bound on a share: Wilson's, for `right` of `count`. 0 if nothing was counted.
pub fn lower_bound(right: f64, count: usize) -> f64 {
    if count == 0 {
        return 0.0;
    }
    let (n, z2) = (count as f64, SURE * SURE);
    let share = right / n;
    let middle = share + z2 / (2.0 * n);
    let width = SURE * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    ((middle - width) / (1.0 + z2 / n)).max(0.0)
}

/// Whether one of two judges of the same pairs is better than the other, at 95%: of the pairs that only one of them
/// ranks correctly, chance would give it half. A margin is the chosen answer's score minus the rejected one's; NaN
/// counts as wrong.
pub fn is_above(margins: &[f64], other: &[f64]) -> bool {
    let (mut won, mut differ) = (0usize, 0usize);
    for (own, other) in margins.iter().zip(other) {
        let (own, other) = (*own > 0.0, *other > 0.0);
        differ += usize::from(own != other);
        won += usize::from(own && !other);
    }
    lower_bound(won as f64, differ) > 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_any_number_of_pairs_is_never_above_a_coin_and_most_of_many_is() {
        for count in [1, 8, 100, 10_000] {
            assert!(lower_bound(count as f64 / 2.0, count) < 0.5);
        }
        assert_eq!(lower_bound(0.0, 0), 0.0);
        assert!(lower_bound(13.0, 20) < 0.5 && lower_bound(14.0, 20) > 0.5);
        // Two of two correct pairs prove little; with more, the bound approaches the share.
        assert!(lower_bound(2.0, 2) < 0.5 && lower_bound(3.0, 3) > 0.5);
        assert!((lower_bound(900.0, 1000) - 0.9).abs() < 0.02);
    }

    #[test]
    fn only_pairs_on_which_two_judges_differ_tell_which_is_above() {
        let (right, wrong) = ([1.0; 50], [-1.0; 10]);
        let judge = |differ: f64| -> Vec<f64> { right.iter().chain(&wrong).copied().chain([differ; 6]).collect() };
        assert!(is_above(&judge(1.0), &judge(-1.0)));
        assert!(!is_above(&judge(-1.0), &judge(1.0)) && !is_above(&judge(1.0), &judge(1.0)));
        assert!(!is_above(&[1.0, 1.0], &[-1.0, f64::NAN]), "two pairs are not enough");
    }
}
