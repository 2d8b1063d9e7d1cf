//! Control tokens that only a template may write: marks the characters of users' text that could begin one, and splits
//! what a template made of it so that no marked character does. Never renders, and tokenizes no words.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use crate::types::TokenId;

/// A token that the tokenizer searches text for before anything else.
#[derive(Clone, Debug)]
pub(super) struct Special {
    pub(super) id: TokenId,
    pub(super) text: String,
    /// Whether it is only searched for where text may contain control tokens. The others are ordinary words.
    pub(super) control: bool,
    /// Whether it absorbs white space before it, and after it.
    pub(super) strips: (bool, bool),
}

/// The special tokens of a vocabulary in the order in which llama.cpp searches for them, the longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Specials {
    all: Vec<Special>,
    /// Texts of the control tokens.
    controls: HashSet<String>,
    /// Lengths of those texts, in bytes.
    lengths: BTreeSet<usize>,
    /// First bytes of those texts.
    firsts: HashSet<u8>,
}

/// A part of a split text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text that is not searched any further.
    Text(Range<usize>),
    /// A special token.
    Token(TokenId),
}

impl Specials {
    pub(super) fn new(mut all: Vec<Special>) -> Specials {
        all.retain(|special| !special.text.is_empty());
        all.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        let controls: HashSet<String> = all.iter().filter(|s| s.control).map(|s| s.text.clone()).collect();
        let lengths = controls.iter().map(String::len).collect();
        let firsts = controls.iter().filter_map(|text| text.bytes().next()).collect();
        Specials { all, controls, lengths, firsts }
    }

    /// Control tokens of these texts, numbered from 0.
    pub(super) fn of_controls(texts: &[&str]) -> Specials {
        let ids = 0..;
        let special =
            |(id, text): (TokenId, &&str)| Special { id, text: (*text).into(), control: true, strips: (false, false) };
        Specials::new(ids.zip(texts).map(special).collect())
    }

    /// Whether a control token's text contains a marked character anywhere; `marks` are the byte offsets of marked
    /// characters. [ascending]
    pub(super) fn named_by(&self, text: &str, marks: &[usize]) -> bool {
        let longest = self.lengths.last().copied().unwrap_or(0);
        let bytes = text.as_bytes();
        let names = |begin: usize, mark: usize| {
            let long = self.lengths.iter().filter(|length| begin + *length > mark);
            long.filter_map(|length| text.get(begin..begin + length)).any(|t| self.controls.contains(t))
        };
        // A token that begins at or before the last mark and reaches this one was found there.
        let mut from = 0;
        marks.iter().any(|&mark| {
            let first = from.max((mark + 1).saturating_sub(longest));
            from = mark + 1;
            (first..=mark).any(|begin| self.firsts.contains(&bytes[begin]) && names(begin, mark))
        })
    }

    /// Splits a text as llama.cpp does, except that control tokens containing a marked character stay text.
    pub(super) fn part(&self, text: &str, marks: &[usize]) -> Vec<Part> {
        let mut parts = vec![Part::Text(0..text.len())];
        for special in self.all.iter().filter(|special| text.contains(special.text.as_str())) {
            let mut next = Vec::with_capacity(parts.len());
            for part in parts {
                match part {
                    Part::Text(range) => cut(text, range, special, marks, &mut next),
                    token => next.push(token),
                }
            }
            parts = next;
        }
        parts
    }
}

/// Cuts the occurrences of one special token out of a range.
fn cut(text: &str, range: Range<usize>, special: &Special, marks: &[usize], into: &mut Vec<Part>) {
    let (mut begin, end, length) = (range.start, range.end, special.text.len());
    let mut from = begin;
    while let Some(at) = text[from..end].find(special.text.as_str()).map(|n| from + n) {
        let first = marks.partition_point(|mark| *mark < at);
        if special.control && marks.get(first).is_some_and(|mark| *mark < at + length) {
            from = at + special.text.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let before = &text[begin..at];
        let kept = if special.strips.0 { before.trim_end_matches(space) } else { before };
        if !kept.is_empty() {
            into.push(Part::Text(begin..begin + kept.len()));
        }
        into.push(Part::Token(special.id));
        begin = at + length;
        if special.strips.1 {
            begin = end - text[begin..end].trim_start_matches(space).len();
        }
        from = begin;
    }
    if begin < end {
        into.push(Part::Text(begin..end));
    }
}

/// C's `isspace`.
fn space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// Characters that control tokens are recognized by, the preferred first: none that JSON escapes, that has a case, or
/// that names consist of.
const SIGNS: &str = "<[{|#$@^~&*=+:;!?/>]}`%";

/// How users' texts are marked, for one vocabulary and one template.
#[derive(Debug, Default)]
pub(super) struct Marker {
    /// Characters such that every control token with any of [`SIGNS`] contains one of them. All occurrences are marked.
    signs: Vec<char>,
    /// Texts of the other control tokens, whose first character is marked where they occur.
    wholes: Vec<String>,
    /// Texts that the template itself searches for, and the characters in them that are left unmarked.
    known: Vec<(String, Vec<usize>)>,
}

impl Marker {
    /// `literals` are the strings of the template: what it searches for in users' texts must still be found.
    pub(super) fn new(specials: &Specials, literals: &[String]) -> Marker {
        let single = |sign: char| literals.iter().any(|text| text.chars().eq([sign]));
        let usable: Vec<char> = SIGNS.chars().filter(|sign| !single(*sign)).collect();
        let (mut signs, mut wholes) = (Vec::new(), Vec::new());
        for control in &specials.controls {
            if control.contains(|c| signs.contains(&c)) {
                continue;
            }
            match usable.iter().find(|sign| control.contains(**sign)) {
                Some(sign) => signs.push(*sign),
                None => wholes.push(control.clone()),
            }
        }
        let mut known: Vec<(String, Vec<usize>)> = Vec::new();
        for literal in literals.iter().filter(|literal| literal.chars().nth(1).is_some()) {
            // A character may stay unmarked where no control token can continue as the literal does.
            let free = |at: usize| {
                let rest = &literal[at..];
                !specials.controls.iter().any(|control| {
                    control.char_indices().any(|(i, _)| {
                        let control = &control[i..];
                        control.starts_with(rest) || rest.starts_with(control)
                    })
                })
            };
            let signs = literal.char_indices().filter(|(_, c)| signs.contains(c)).map(|(at, _)| at);
            let free: Vec<usize> = signs.filter(|at| free(*at)).collect();
            if !free.is_empty() && !known.iter().any(|(seen, _)| seen == literal) {
                known.push((literal.clone(), free));
            }
        }
        Marker { signs, wholes, known }
    }

    /// Whether there is anything to mark.
    pub(super) fn is_idle(&self) -> bool {
        self.signs.is_empty() && self.wholes.is_empty()
    }

    /// The characters that may have to be marked.
    pub(super) fn characters(&self) -> impl Iterator<Item = char> {
        let firsts = self.wholes.iter().filter_map(|whole| whole.chars().next());
        self.signs.iter().copied().chain(firsts)
    }

    /// The text with each marked character replaced by its `stand_in`.
    pub(super) fn mark(&self, text: &str, stand_in: impl Fn(char) -> char) -> String {
        let mut stay: HashSet<usize> = HashSet::new();
        for (literal, free) in &self.known {
            stay.extend(text.match_indices(literal.as_str()).flat_map(|(at, _)| free.iter().map(move |i| at + i)));
        }
        let whole = |at: usize| self.wholes.iter().any(|whole| text[at..].starts_with(whole.as_str()));
        let marked = |(at, c): (usize, char)| {
            let mark = self.signs.contains(&c) && !stay.contains(&at) || whole(at);
            if mark { stand_in(c) } else { c }
        };
        text.char_indices().map(marked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(texts: &[&str]) -> Specials {
        let special = |(id, text): (usize, &&str)| Special {
            id: id as TokenId,
            text: (*text).into(),
            control: !text.starts_with("<t"),
            strips: (false, text.contains("rstrip")),
        };
        Specials::new(texts.iter().enumerate().map(special).collect())
    }

    #[test]
    fn a_marked_character_begins_no_control_token_and_the_others_do() {
        let specials = specials(&["<a>", "<ab>", "<t>", "<rstrip>"]);
        let text = "<a>x<a><t> <rstrip> \n y<ab";
        assert!(!specials.named_by(text, &[3]) && specials.named_by(text, &[5]));
        let parts = specials.part(text, &[4]);
        let wanted =
            [Part::Token(0), Part::Text(3..7), Part::Token(2), Part::Text(10..11), Part::Token(3), Part::Text(22..26)];
        assert_eq!(parts, wanted);
    }

    #[test]
    fn what_the_template_looks_for_is_not_marked_unless_a_control_token_could_begin_there() {
        let specials = specials(&["<|end|>", "[INST]", "stop"]);
        let marker = Marker::new(&specials, &["</think>".into(), "\n<|".into(), "<|end|>".into(), "[".into()]);
        let marked = marker.mark("</think><think>\n<|end|> [INST] nonstop", |c| if c == 's' { '5' } else { '%' });
        assert_eq!(
            marked,
            "</think>%think>\n%|end|> [INST] nonstop".replace("[INST]", "[INST%").replace("nons", "non5")
        );
    }
}
