//! Analyses a chat template's source where the engine's own parser does not help: finds its string literals, and
//! rewrites constructs that this engine lacks. Never renders.

use std::ops::Range;

use crate::error::{Error, Result};

/// A source rewritten for the engine, with its literals.
pub(super) struct Source {
    /// The rewritten source.
    pub(super) text: String,
    /// Its string literals, unescaped, in order.
    pub(super) literals: Vec<String>,
}

/// Most tokens of one `{{ }}` or `{% %}`, since the engine's work on a chain is quadratic in its length.
const MOST_TOKENS: usize = 8192;

/// Rewrites `{% generation %}` blocks, which only mark the assistant's text for training, and Python's `"%s" % value`,
/// which becomes the filter `percent`.
///
/// # Errors
/// `Unsupported` for an expression that is too long.
pub(super) fn read(source: &str) -> Result<Source> {
    let mut edits: Vec<(Range<usize>, &'static str)> = Vec::new();
    let mut literals = Vec::new();
    for block in blocks(source) {
        if block.len() > MOST_TOKENS {
            return Err(Error::unsupported(format!(
                "the model's chat template can't be parsed: it has an expression of {} words and signs, expected at \
                 most {MOST_TOKENS}",
                block.len()
            )));
        }
        literals.extend(block.iter().filter(|t| t.kind == Kind::Text).map(|t| literal(&source[t.at.clone()])));
        let words: Vec<&str> = block.iter().map(|t| &source[t.at.clone()]).collect();
        match words.as_slice() {
            ["generation"] => edits.push((block[0].at.clone(), "if true")),
            ["endgeneration"] => edits.push((block[0].at.clone(), "endif")),
            _ => percents(&block, &words, &mut edits),
        }
    }
    edits.sort_by_key(|(at, _)| (at.start, at.end));
    let (mut text, mut done) = (String::with_capacity(source.len() + 64), 0);
    for (at, with) in edits {
        text.push_str(&source[done..at.start]);
        text.push_str(with);
        done = at.end;
    }
    text.push_str(&source[done..]);
    Ok(Source { text, literals })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A string literal, with its quotes.
    Text,
    /// A name or a number.
    Word,
    /// An operator or a bracket.
    Sign,
}

struct Token {
    kind: Kind,
    at: Range<usize>,
}

/// The tokens of each `{{ }}` and `{% %}`, without delimiters. Comments and raw blocks have none.
fn blocks(source: &str) -> Vec<Vec<Token>> {
    let mut blocks = Vec::new();
    let (mut at, mut raw) = (0, false);
    while let Some(open) = source[at..].find('{').map(|n| at + n) {
        let rest = &source[open..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') => match rest.find("#}") {
                Some(end) => open + end + 2,
                None => break,
            },
            Some(kind @ (b'{' | b'%')) => {
                let close = if *kind == b'{' { "}}" } else { "%}" };
                let (tokens, end) = tokens(source, open + 2, close);
                let word = (*kind == b'%').then(|| tokens.first().map(|t| &source[t.at.clone()])).flatten();
                match word {
                    Some("endraw") => raw = false,
                    _ if raw => {
                        // Nothing in a raw block is code; its end may stand inside what looked like a block.
                        at = open + 2;
                        continue;
                    }
                    Some("raw") => raw = true,
                    _ => blocks.push(tokens),
                }
                end
            }
            _ => open + 1,
        };
        at = end;
    }
    blocks
}

/// The tokens from `at` to `close`, and the position after it.
fn tokens(source: &str, mut at: usize, close: &str) -> (Vec<Token>, usize) {
    let (mut found, mut depth) = (Vec::new(), 0usize);
    let bytes = source.as_bytes();
    // Whitespace control.
    if matches!(bytes.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    while let Some(&byte) = bytes.get(at) {
        if depth == 0 && source[at..].starts_with(close) {
            return (trimmed(source, found, at), at + close.len());
        }
        let start = at;
        let kind = match byte {
            b'\'' | b'"' => {
                at += 1;
                while let Some(&inside) = bytes.get(at) {
                    at += 1;
                    match inside {
                        b'\\' => at += source[at..].chars().next().map_or(0, char::len_utf8),
                        _ if inside == byte => break,
                        _ => {}
                    }
                }
                // Quotes are ASCII, so this never starts inside a character of several bytes.
                Kind::Text
            }
            _ if byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii() => {
                while bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii()) {
                    at += 1;
                }
                Kind::Word
            }
            _ if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => {
                depth = match byte {
                    b'(' | b'[' | b'{' => depth + 1,
                    b')' | b']' | b'}' => depth.saturating_sub(1),
                    _ => depth,
                };
                let double = ["**", "//", "==", "!=", "<=", ">="].iter().any(|sign| source[at..].starts_with(sign));
                at += if double { 2 } else { 1 };
                Kind::Sign
            }
        };
        found.push(Token { kind, at: start..at });
    }
    (found, source.len())
}

/// Drops the sign of whitespace control before the end.
fn trimmed(source: &str, mut tokens: Vec<Token>, end: usize) -> Vec<Token> {
    if tokens.last().is_some_and(|t| t.at.end == end && matches!(&source[t.at.clone()], "-" | "+")) {
        tokens.pop();
    }
    tokens
}

/// The text of a literal, unescaped.
fn literal(quoted: &str) -> String {
    let inside = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    let (mut text, mut rest) = (String::with_capacity(inside.len()), inside.chars());
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            ('\\', Some('n')) => text.push('\n'),
            ('\\', Some('t')) => text.push('\t'),
            ('\\', Some('r')) => text.push('\r'),
            ('\\', Some('u')) => {
                let hex: String = rest.by_ref().take(4).collect();
                text.extend(u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32));
            }
            ('\\', Some(other)) => text.push(other),
            ('\\', None) => {}
            (c, _) => text.push(c),
        }
    }
    text
}

/// Turns `left % right` into `left|percent(right)`, where `left` may be text. A filter binds more tightly than the
/// operator, so the left operand must end there.
fn percents(block: &[Token], words: &[&str], edits: &mut Vec<(Range<usize>, &'static str)>) {
    for (place, token) in block.iter().enumerate() {
        if words[place] != "%" {
            continue;
        }
        let Some(begin) = operand_before(block, words, place) else { continue };
        let binds = |word: &&str| matches!(*word, "*" | "/" | "//" | "%" | "**");
        let before = begin.checked_sub(1).map(|i| words[i]);
        let signed = before.is_some_and(|w| w == "-" || w == "+")
            && begin.checked_sub(2).is_none_or(|i| block[i].kind == Kind::Sign && !matches!(words[i], ")" | "]" | "}"));
        if before.as_ref().is_some_and(binds) || signed {
            continue;
        }
        let Some(end) = operand_after(block, words, place + 1) else { continue };
        if words.get(end) == Some(&"**") {
            continue;
        }
        edits.push((token.at.clone(), "|percent("));
        let close = block[end - 1].at.end;
        edits.push((close..close, ")"));
    }
}

/// The start of the operand that ends right before `end`: a literal, a name or brackets, with the calls, look-ups and
/// filters after it.
fn operand_before(block: &[Token], words: &[&str], end: usize) -> Option<usize> {
    let mut at = end.checked_sub(1)?;
    loop {
        let bracket = matches!(words[at], ")" | "]" | "}");
        if bracket {
            at = opening(words, at)?;
        } else if block[at].kind == Kind::Sign {
            return None;
        }
        let Some(before) = at.checked_sub(1) else { return Some(at) };
        let called = bracket && matches!(words[at], "(" | "[");
        match words[before] {
            // A call or look-up on what comes before.
            ")" | "]" if called => at = before,
            "." | "|" => at = before.checked_sub(1)?,
            word if called && block[before].kind != Kind::Sign && !KEYWORDS.contains(&word) => at = before,
            "is" => return None,
            _ => return Some(at),
        }
    }
}

const KEYWORDS: [&str; 10] = ["and", "or", "not", "in", "is", "if", "else", "elif", "set", "for"];

/// The end of the operand that begins at `at`.
fn operand_after(block: &[Token], words: &[&str], mut at: usize) -> Option<usize> {
    if matches!(*words.get(at)?, "(" | "[" | "{") {
        at = closing(words, at)? + 1;
    } else if block[at].kind == Kind::Sign {
        return None;
    } else {
        at += 1;
    }
    loop {
        match words.get(at) {
            Some(&("." | "|")) if block.get(at + 1).is_some_and(|t| t.kind == Kind::Word) => at += 2,
            Some(&("(" | "[")) => at = closing(words, at)? + 1,
            _ => return Some(at),
        }
    }
}

fn opening(words: &[&str], close: usize) -> Option<usize> {
    let mut depth = 0usize;
    for at in (0..=close).rev() {
        match words[at] {
            ")" | "]" | "}" => depth += 1,
            "(" | "[" | "{" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn closing(words: &[&str], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, word) in words.iter().enumerate().skip(open) {
        match *word {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(source: &str) -> String {
        read(source).unwrap().text
    }

    #[test]
    fn generation_blocks_become_blocks_that_change_nothing() {
        let source = "{%- generation -%}\n{{ m }}{% endgeneration %}{% set generation = 1 %}";
        assert_eq!(rewritten(source), "{%- if true -%}\n{{ m }}{% endif %}{% set generation = 1 %}");
    }

    #[test]
    fn percent_signs_between_values_become_a_filter() {
        for (source, wanted) in [
            ("{{ '%s' % x }}", "{{ '%s' |percent( x) }}"),
            (
                "{{ 'a' + '%s-%d' % (m.role, m['n'][0]) + 'b' }}",
                "{{ 'a' + '%s-%d' |percent( (m.role, m['n'][0])) + 'b' }}",
            ),
            ("{{ '%s' % ('%d' % x | int) }}", "{{ '%s' |percent( ('%d' |percent( x | int))) }}"),
            ("{{ f(x).y['%'] % z.w(1)|upper ~ 'c' }}", "{{ f(x).y['%'] |percent( z.w(1)|upper) ~ 'c' }}"),
            ("{% if (a == 'u') != (loop.index0 % 2 == 0) %}", "{% if (a == 'u') != (loop.index0 |percent( 2) == 0) %}"),
            ("{{ a if b else c % d }}", "{{ a if b else c |percent( d) }}"),
            ("{{ {'a': '%s' % {'b': 1}} }}", "{{ {'a': '%s' |percent( {'b': 1})} }}"),
        ] {
            assert_eq!(rewritten(source), wanted);
        }
        // It stays an operator where the filter would bind differently.
        for same in [
            "{{ a * b % c }}",
            "{{ -a % b }}",
            "{{ a % -b }}",
            "{{ a % b ** c }}",
            "{{ 'x %} %' }}",
            "100 % {# a % b #}",
        ] {
            assert_eq!(rewritten(same), same);
        }
    }

    #[test]
    fn literals_are_those_of_code_alone() {
        let source = "'no' {# 'no' #}{% raw %}{{ 'no' }}{% endraw %}{{- 'a\\n\\'b' -}}\
            {% if \"c\" in x %}don't{% endif %}{{ {'k': {'v': 'é}}'}} }}";
        assert_eq!(read(source).unwrap().literals, ["a\n'b", "c", "k", "v", "é}}"]);
    }

    #[test]
    fn a_source_that_breaks_off_is_read_to_its_end() {
        for source in [
            "{{",
            "{% '",
            "{{ 'a\\",
            "{#",
            "{{ ((( % ",
            "{% raw %}{{ é",
            "{{ a % }}",
            "{{ % }}",
            "{{ ) % ( }}",
            "{{ a | % b }}",
        ] {
            read(source).unwrap();
        }
    }
}
