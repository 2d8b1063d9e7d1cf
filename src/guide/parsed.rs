//! Looks at parsed patterns: what the engine can't do with one, and how much it multiplies work. Never rewrites one.

use std::collections::HashSet;

use regex_syntax::hir::{Class, Hir, HirKind, Look};
use regex_syntax::utf8::Utf8Sequences;

/// Why the engine can't follow a pattern.
pub(super) fn unsupported(pattern: &Hir) -> Option<&'static str> {
    if is_misanchored(pattern, true, true) {
        return Some("^ is supported where the text begins only, and $ where it ends");
    }
    has_empty(pattern).then_some("a class has no characters but control characters, which are not supported")
}

/// Whether an anchor stands elsewhere than where the whole text begins or ends.
fn is_misanchored(part: &Hir, first: bool, last: bool) -> bool {
    match part.kind() {
        HirKind::Look(Look::Start) => !first,
        HirKind::Look(Look::End) => !last,
        HirKind::Look(_) => true,
        HirKind::Concat(parts) => {
            let begin = parts.iter().position(|part| !matches!(part.kind(), HirKind::Look(Look::Start)));
            let end = parts.iter().rposition(|part| !matches!(part.kind(), HirKind::Look(Look::End)));
            let each = parts.iter().enumerate();
            each.into_iter().any(|(i, part)| {
                is_misanchored(part, first && begin.is_none_or(|at| i <= at), last && end.is_none_or(|at| i >= at))
            })
        }
        HirKind::Alternation(parts) => parts.iter().any(|part| is_misanchored(part, first, last)),
        HirKind::Capture(inner) => is_misanchored(&inner.sub, first, last),
        HirKind::Repetition(inner) => is_misanchored(&inner.sub, false, false),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) => false,
    }
}

fn has_empty(part: &Hir) -> bool {
    match part.kind() {
        HirKind::Class(Class::Unicode(class)) => class.ranges().is_empty(),
        HirKind::Class(Class::Bytes(class)) => class.ranges().is_empty(),
        other => other.subs().iter().any(has_empty),
    }
}

/// Upper limit on the places in a pattern that one byte of a text can be at, places with equal characters counted once:
/// the factor by which the pattern multiplies the work where others must match the same text.
pub(super) fn overlap(pattern: &str) -> u64 {
    let Ok(parsed) = regex_syntax::parse(pattern) else { return 1 };
    let mut count = Count { seen: HashSet::new(), bytes: [0; 256] };
    count.part(&parsed);
    // One more for what stands around a pattern without anchors.
    1 + count.bytes.into_iter().max().unwrap_or(0)
}

/// How many of the different sets of characters have one that begins with each byte.
struct Count {
    seen: HashSet<Vec<(char, char)>>,
    bytes: [u64; 256],
}

impl Count {
    fn part(&mut self, part: &Hir) {
        match part.kind() {
            HirKind::Literal(text) => {
                let text = String::from_utf8_lossy(&text.0);
                text.chars().for_each(|c| self.set(vec![(c, c)]));
            }
            HirKind::Class(Class::Unicode(class)) => {
                self.set(class.ranges().iter().map(|range| (range.start(), range.end())).collect());
            }
            other => other.subs().iter().for_each(|sub| self.part(sub)),
        }
    }

    fn set(&mut self, ranges: Vec<(char, char)>) {
        let mut there = [false; 256];
        for sequence in ranges.iter().flat_map(|(from, to)| Utf8Sequences::new(*from, *to)) {
            let first = sequence.as_slice()[0];
            there[usize::from(first.start)..=usize::from(first.end)].fill(true);
        }
        if self.seen.insert(ranges) {
            self.bytes.iter_mut().zip(there).for_each(|(count, there)| *count += u64::from(there));
        }
    }
}
