//! Control tokens that only a template may write: marks the characters of users' text that could begin one, and takes
//! apart what a template made of it so that a marked character begins none. Never renders, and tokenizes no words.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use crate::types::TokenId;

/// A token that a tokenizer looks for in text before anything else.
#[derive(Clone, Debug)]
pub(super) struct Special {
    pub(super) id: TokenId,
    pub(super) text: String,
    /// Whether it is looked for only where text may name control tokens. The others are words like any.
    pub(super) control: bool,
    /// Whether it takes the white space before it, or behind it.
    pub(super) strips: (bool, bool),
}

/// The special tokens of a vocabulary, as llama.cpp looks for them: the longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Specials {
    all: Vec<Special>,
    /// Texts of the control tokens.
    controls: HashSet<String>,
    /// Lengths of those texts, in bytes.
    lengths: BTreeSet<usize>,
    /// Bytes that one of them begins with.
    firsts: HashSet<u8>,
}

/// A part of a text that was taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text in which nothing is looked for any more.
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

    /// Whether a control token's text is anywhere in which a marked character stands, `marks` being the bytes at which
    /// they begin. [ascending]
    pub(super) fn named_by(&self, text: &str, marks: &[usize]) -> bool {
        let longest = self.lengths.last().copied().unwrap_or(0);
        let bytes = text.as_bytes();
        let names = |begin: usize, mark: usize| {
            let long = self.lengths.iter().filter(|length| begin + *length > mark);
            long.filter_map(|length| text.get(begin..begin + length)).any(|t| self.controls.contains(t))
        };
        // What begins at the mark before or earlier and reaches to this one was found there.
        let mut from = 0;
        marks.iter().any(|&mark| {
            let first = from.max((mark + 1).saturating_sub(longest));
            from = mark + 1;
            (first..=mark).any(|begin| self.firsts.contains(&bytes[begin]) && names(begin, mark))
        })
    }

    /// Takes a text apart as llama.cpp does, but for control tokens that a marked character has part in: they stay
    /// text.
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

/// Signs that a control token is recognized by, the preferred first: none that JSON escapes, that has a case, or that
/// names are made of.
const SIGNS: &str = "<[{|#$@^~&*=+:;!?/>]}`%";

/// How the texts of users are marked for one vocabulary and one template.
#[derive(Debug, Default)]
pub(super) struct Marker {
    /// Characters of which one is in every control token that has any of [`SIGNS`]. All of them are marked.
    signs: Vec<char>,
    /// Texts of the other control tokens: where one stands, its first character is marked.
    wholes: Vec<String>,
    /// Texts that the template itself looks for, and the characters in them that stay as they are.
    known: Vec<(String, Vec<usize>)>,
}

impl Marker {
    /// `literals` are the strings of the template: what it looks for in users' texts must still be found.
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
            // A sign may stay where no control token can go on from it as the literal does.
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

    /// The text with `stand_in` of each marked character in its place.
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
