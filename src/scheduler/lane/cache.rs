//! What the sequences of a lane hold: prefixes that are used again, shared, and cleared for room. Never fills a batch.

use std::time::Instant;

use super::{Lane, Slot};
use crate::types::TokenId;

impl Slot {
    /// How many of the prompt's first tokens are cached, without its last one, whose logits are needed.
    fn prefix_of(&self, prompt: &[TokenId]) -> usize {
        match self {
            Slot::Idle { cached, .. } => common_prefix(cached, prompt),
            Slot::Busy(running) => common_prefix(&running.job.request.prompt, prompt).min(running.evaluated),
        }
    }
}

/// Number of first tokens that both share, without the prompt's last one, whose logits are needed.
fn common_prefix(other: &[TokenId], prompt: &[TokenId]) -> usize {
    let alike = other.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    alike.min(prompt.len().saturating_sub(1))
}

/// Least number of prompt tokens worth waiting for while another request reads them.
const WORTH_WAITING: usize = 16;

impl Lane {
    /// The idle slot to use, and how much of its cache: the one that shares the longest prefix with the prompt. If that
    /// is only a small part of its cache, another slot is used, since the prefix can still be shared
    /// ([`Lane::share_prefix`]).
    pub(super) fn best_slot(&self, prompt: &[TokenId]) -> Option<(usize, usize)> {
        let idle = || {
            self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
                Slot::Idle { cached, since } => Some((i, cached, since)),
                Slot::Busy(_) => None,
            })
        };
        let best = idle()
            .map(|(i, cached, since)| (common_prefix(cached, prompt), std::cmp::Reverse(*since), i, cached.len()));
        let (alike, _, index, held) = best.max()?;
        if alike * 2 >= held {
            return Some((index, alike));
        }
        idle()
            .min_by_key(|(_, cached, since)| (!cached.is_empty(), **since))
            .map(|(i, cached, _)| (i, common_prefix(cached, prompt)))
    }

    /// The prefix cache: a request that reads its prompt gets what any other sequence has cached of it.
    pub(super) fn share_prefix(&mut self, index: usize) {
        let Slot::Busy(running) = &self.slots[index] else { return };
        let (prompt, have) = (&running.job.request.prompt, running.evaluated);
        let others = self.slots.iter().enumerate().filter(|(i, _)| *i != index);
        let Some((most, from)) = others.map(|(i, slot)| (slot.prefix_of(prompt), i)).max() else { return };
        if most > have && self.context.share(from as i32, index as i32, have as u32..most as u32) {
            let Slot::Busy(running) = &mut self.slots[index] else { return };
            running.evaluated = most;
        }
    }

    /// Clears idle caches, the oldest first, until the rest fits `room` tokens. Returns whether there was one to clear.
    pub(super) fn evict(&mut self, room: usize) -> bool {
        let mut any = false;
        loop {
            let idle = self.slots.iter().enumerate().filter_map(|(i, slot)| match slot {
                Slot::Idle { cached, since } if !cached.is_empty() => Some((i, cached.len(), *since)),
                _ => None,
            });
            let (held, oldest) = idle.fold((0, None::<(usize, Instant)>), |(held, oldest), (i, n, since)| {
                let older = oldest.is_none_or(|(_, s)| since < s);
                (held + n, if older { Some((i, since)) } else { oldest })
            });
            let Some((index, _)) = oldest.filter(|_| held > room) else {
                return any;
            };
            self.context.forget(index as i32, 0);
            self.slots[index] = Slot::empty();
            any = true;
        }
    }

    /// Whether a prompt continues like that of `before` for more tokens than are worth reading twice.
    pub(super) fn reads_same_prefix(&self, index: usize, before: usize) -> bool {
        let (Slot::Busy(this), Slot::Busy(other)) = (&self.slots[index], &self.slots[before]) else { return false };
        common_prefix(&other.job.request.prompt, &this.job.request.prompt) >= this.evaluated + WORTH_WAITING
    }
}
