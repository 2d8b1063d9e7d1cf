//! The order in which a run uses its prompts. Never reads one.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;

/// The indices of the prompts at positions `first..first + count` of a run with this seed: each prompt once, in random
/// order, before any comes again. A function of its arguments alone, so that a resumed run needs no state of it.
pub(super) fn order(prompts: usize, seed: u64, first: u64, count: usize) -> Vec<usize> {
    let size = prompts.max(1) as u64;
    let mut shuffled: (Option<u64>, Vec<usize>) = (None, Vec::new());
    let mut asked = Vec::with_capacity(count);
    for place in first..first + count as u64 {
        let round = place / size;
        if shuffled.0 != Some(round) {
            let mut all: Vec<usize> = (0..prompts).collect();
            let mut rng = ChaCha12Rng::seed_from_u64(seed);
            rng.set_stream(round);
            all.shuffle(&mut rng);
            shuffled = (Some(round), all);
        }
        asked.extend(shuffled.1.get((place % size) as usize));
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_is_asked_once_before_any_is_asked_again_wherever_a_run_begins() {
        let whole = order(7, 3, 0, 21);
        for round in whole.chunks(7) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_ne!(whole[..7], whole[7..14]);
        assert_eq!(order(7, 3, 5, 10), whole[5..15]);
        assert_ne!(order(7, 4, 0, 21), whole);
    }
}
