//! The taste of the simulated users: how they rate answers. Never sees an answer's text.

/// Tokens of an ideal answer.
pub const IDEAL_TOKENS: f64 = 20.0;

/// Distance from the ideal, in tokens, at which an answer is worth -1.
pub const WORST_DISTANCE: f64 = 40.0;

/// Most tokens an answer may have.
pub const MAX_TOKENS: u32 = 64;

/// The taste in words, for the reader of the demo.
pub const IN_WORDS: &str = "an answer that ends by itself and is about 20 tokens long gets 1, \
    falling linearly to -1 at 40 tokens off; -1 if it was cut off";

/// The rating of an answer of `tokens` tokens, in [-1, 1].
pub fn rate(tokens: u32, cut_off: bool) -> f64 {
    if cut_off {
        return -1.0;
    }
    let distance = (f64::from(tokens) - IDEAL_TOKENS).abs();
    (1.0 - 2.0 * distance / WORST_DISTANCE).max(-1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_ideal_length_gets_one() {
        assert_eq!(rate(20, false), 1.0);
    }

    #[test]
    fn the_rating_falls_linearly_on_both_sides() {
        assert_eq!(rate(10, false), 0.5);
        assert_eq!(rate(30, false), 0.5);
        assert_eq!(rate(40, false), 0.0);
        assert_eq!(rate(0, false), 0.0);
        assert_eq!(rate(50, false), -0.5);
    }

    #[test]
    fn forty_tokens_off_or_more_is_the_worst() {
        assert_eq!(rate(60, false), -1.0);
        assert_eq!(rate(64, false), -1.0);
        assert_eq!(rate(u32::MAX, false), -1.0);
    }

    #[test]
    fn a_cut_off_answer_is_the_worst_whatever_its_length() {
        assert_eq!(rate(20, true), -1.0);
        assert_eq!(rate(64, true), -1.0);
    }
}
