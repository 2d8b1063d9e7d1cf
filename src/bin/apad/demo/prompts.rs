//! The instructions the demo carries: one set to learn from, one that is only ever used to measure. Never mixes the
//! two.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

const TO_LEARN: &str = include_str!("prompts.txt");
const HELD_BACK: &str = include_str!("held_back.txt");

/// The instructions that no version is trained on.
pub fn held_back() -> Vec<&'static str> {
    HELD_BACK.lines().collect()
}

/// The instructions to learn from, without end: shuffled, and shuffled again each time all were used.
pub struct Deck {
    order: Vec<&'static str>,
    next: usize,
    rng: ChaCha8Rng,
}

impl Deck {
    /// A deck whose order depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        let order: Vec<_> = TO_LEARN.lines().collect();
        Self { next: order.len(), order, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next `count` instructions.
    pub fn draw(&mut self, count: usize) -> Vec<&'static str> {
        let mut hand = Vec::with_capacity(count);
        while hand.len() < count {
            if self.next == self.order.len() {
                self.order.shuffle(&mut self.rng);
                self.next = 0;
            }
            hand.push(self.order[self.next]);
            self.next += 1;
        }
        hand
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_instruction_is_one_short_line_and_none_is_in_both_sets() {
        let all: Vec<_> = TO_LEARN.lines().chain(HELD_BACK.lines()).collect();
        assert!(TO_LEARN.lines().count() >= 200);
        assert!(held_back().len() >= 32);
        assert!(all.iter().all(|p| !p.trim().is_empty() && p.len() <= 80 && p.trim() == *p));
        assert_eq!(all.iter().map(|p| p.to_lowercase()).collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn a_deck_deals_every_instruction_once_before_it_repeats_one() {
        let count = TO_LEARN.lines().count();
        let mut deck = Deck::new(7);
        let dealt: HashSet<_> = (0..count).flat_map(|_| deck.draw(1)).collect();
        assert_eq!(dealt.len(), count);
    }

    #[test]
    fn the_seed_decides_the_order() {
        assert_eq!(Deck::new(1).draw(40), Deck::new(1).draw(40));
        assert_ne!(Deck::new(1).draw(40), Deck::new(2).draw(40));
    }
}
