//! Translates the `pattern` of a JSON schema (ECMA-262, and what Python validators accept) into the syntax of the
//! regular expression engine that constrains answers. Never matches anything.
//!
//! Where the two dialects differ (`\d`, `\w`, `\s` and their complements beyond ASCII), the result is what both accept,
//! so that an answer passes either validator. Classes lose the control characters that answers never contain, as the
//! engine writes others in their place.

use super::parsed;
use super::values::is_written;
use crate::error::{Error, Result};

/// Longest pattern, in bytes.
const BYTES: usize = 8 << 10;
/// Largest repetition count.
const REPEATS: u32 = 100_000;
/// What is taken off a class: see [`is_written`].
pub(super) const UNWRITTEN: &str = r"--[\x{0}-\x{7}\x{b}\x{e}-\x{1f}\x{7f}]";

/// Translates the pattern into the engine's syntax.
///
/// # Errors
/// `Arg` naming what is invalid or unsupported, and where.
pub(super) fn translate(pattern: &str) -> Result<String> {
    if pattern.len() > BYTES {
        return Err(Error::arg(format!("pattern has {} bytes, expected at most {BYTES}", pattern.len())));
    }
    let chars: Vec<char> = pattern.chars().collect();
    let mut walk = Walk { chars: &chars, at: 0, out: String::new() };
    walk.all()?;
    // Reported here with its position in the original pattern; the engine would give another one.
    let why = match regex_syntax::parse(&walk.out) {
        Ok(parsed) => parsed::unsupported(&parsed).map(str::to_owned),
        Err(regex_syntax::Error::Parse(e)) => Some(e.kind().to_string()),
        Err(regex_syntax::Error::Translate(e)) => Some(e.kind().to_string()),
        Err(_) => Some("it can't be parsed".into()),
    };
    match why {
        Some(why) => Err(Error::arg(format!("pattern is not a regular expression that can be honoured: {why}"))),
        None => Ok(walk.out),
    }
}

struct Walk<'a> {
    chars: &'a [char],
    at: usize,
    out: String,
}

impl Walk<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn eat(&mut self, c: char) -> bool {
        let there = self.peek() == Some(c);
        self.at += usize::from(there);
        there
    }

    fn wrong<T>(&self, what: &str) -> Result<T> {
        Err(Error::arg(format!("pattern: {what} (at character {})", self.at)))
    }

    fn all(&mut self) -> Result<()> {
        let mut repeatable = false;
        while let Some(c) = self.next() {
            let quantified = match c {
                '\\' => {
                    let item = self.escape(false)?;
                    self.outside(&item)?;
                    true
                }
                '[' => {
                    self.class()?;
                    true
                }
                '(' => {
                    self.group()?;
                    false
                }
                ')' => {
                    self.out.push(')');
                    true
                }
                '|' | '^' | '$' => {
                    self.out.push(c);
                    false
                }
                // ECMA-262 excludes more line terminators than the engine does.
                '.' => {
                    self.out.push_str(r"[[^\n\r\x{2028}\x{2029}]");
                    self.take_off();
                    true
                }
                '*' | '+' | '?' => {
                    if !repeatable {
                        return self.wrong("there is nothing to repeat");
                    }
                    self.out.push(c);
                    // Lazy and greedy repetition match the same texts as a whole.
                    self.eat('?');
                    false
                }
                '{' => match self.repetition()? {
                    Some(_) if !repeatable => return self.wrong("there is nothing to repeat"),
                    Some(text) => {
                        self.out.push_str(&text);
                        self.eat('?');
                        false
                    }
                    None => {
                        self.literal('{');
                        true
                    }
                },
                other => {
                    self.outside(&Item::One(other))?;
                    true
                }
            };
            repeatable = quantified;
        }
        Ok(())
    }

    /// `{m}`, `{m,}` or `{m,n}`; anything else is the character itself.
    fn repetition(&mut self) -> Result<Option<String>> {
        let rest = &self.chars[self.at..];
        let Some(end) = rest.iter().take(16).position(|c| *c == '}') else { return Ok(None) };
        let inside: String = rest[..end].iter().collect();
        let (least, most) = inside.split_once(',').unwrap_or((&inside, &inside));
        if let Some(most) = inside.strip_prefix(',')
            && most.bytes().all(|b| b.is_ascii_digit())
        {
            return self
                .wrong(&format!("{{{inside}}} means one thing to some and another to others, write {{0,{most}}}"));
        }
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(least) || !(digits(most) || (most.is_empty() && inside.contains(','))) {
            return Ok(None);
        }
        let small = |text: &str| text.is_empty() || text.parse::<u32>().is_ok_and(|n| n <= REPEATS);
        if !small(least) || !small(most) {
            return self.wrong(&format!("something is repeated more than {REPEATS} times"));
        }
        self.at += end + 1;
        Ok(Some(format!("{{{inside}}}")))
    }

    fn group(&mut self) -> Result<()> {
        if !self.eat('?') {
            self.out.push_str("(?:");
            return Ok(());
        }
        let python = self.eat('P');
        match self.next() {
            Some(':') if !python => self.out.push_str("(?:"),
            Some('<') if !matches!(self.peek(), Some('=' | '!')) => {
                while let Some(c) = self.next() {
                    if c == '>' {
                        self.out.push_str("(?:");
                        return Ok(());
                    }
                }
                return self.wrong("the name of a group has no end");
            }
            Some('i') if !python && self.eat(')') => self.out.push_str("(?i)"),
            Some('i') if !python && self.eat(':') => self.out.push_str("(?i:"),
            Some('=' | '!' | '<') => return self.wrong("looking ahead or behind is not supported"),
            _ => return self.wrong("this kind of group is not supported"),
        }
        Ok(())
    }

    /// The meaning of a backslash with its letter.
    fn escape(&mut self, in_class: bool) -> Result<Item> {
        let Some(c) = self.next() else { return self.wrong("a backslash is the last character") };
        let one = |c| Ok(Item::One(c));
        match c {
            'd' | 'D' | 'w' | 'W' | 's' | 'S' => Ok(Item::Set(c)),
            'n' => one('\n'),
            'r' => one('\r'),
            't' => one('\t'),
            'f' => one('\u{c}'),
            'v' => one('\u{b}'),
            'b' if in_class => one('\u{8}'),
            'b' | 'B' => self.wrong("word boundaries are not supported"),
            '0' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => one('\0'),
            '0'..='9' | 'k' => self.wrong("references to groups are not supported"),
            'c' => match self.next() {
                Some(letter) if letter.is_ascii_alphabetic() => one((letter as u8 & 0x1f) as char),
                _ => self.wrong("expected a letter after \\c"),
            },
            'x' => self.hexadecimal(2).and_then(|code| self.character(code)),
            'u' if self.eat('{') => {
                let mut digits = String::new();
                while let Some(c) = self.next().filter(|c| *c != '}') {
                    digits.push(c);
                }
                match u32::from_str_radix(&digits, 16) {
                    Ok(code) => self.character(code),
                    Err(_) => self.wrong("expected hexadecimal digits in \\u{}"),
                }
            }
            'u' => {
                let code = self.hexadecimal(4)?;
                if (0xd800..0xdc00).contains(&code) && self.eat('\\') && self.eat('u') {
                    let low = self.hexadecimal(4)?;
                    if (0xdc00..0xe000).contains(&low) {
                        return self.character(0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00));
                    }
                }
                self.character(code)
            }
            'p' | 'P' => {
                if !self.eat('{') {
                    return self.wrong("expected { after \\p");
                }
                let mut name = String::new();
                while let Some(c) = self.next().filter(|c| *c != '}') {
                    name.push(c);
                }
                if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '=')) {
                    return self.wrong("the name of a class of characters is not known");
                }
                Ok(Item::Property(format!("\\{c}{{{name}}}")))
            }
            other if other.is_alphanumeric() => self.wrong(&format!("\\{other} is not known")),
            other => one(other),
        }
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<u32> {
        let text: String = self.chars[self.at..].iter().take(digits).collect();
        match u32::from_str_radix(&text, 16) {
            Ok(code) if text.chars().count() == digits && text.chars().all(|c| c.is_ascii_hexdigit()) => {
                self.at += digits;
                Ok(code)
            }
            _ => self.wrong(&format!("expected {digits} hexadecimal digits")),
        }
    }

    fn character(&self, code: u32) -> Result<Item> {
        match char::from_u32(code) {
            Some(c) => Ok(Item::One(c)),
            None => self.wrong("half of a surrogate pair is no character"),
        }
    }

    /// Ends a class, in which another one stands, without the characters that answers never have.
    fn take_off(&mut self) {
        self.out.push_str(UNWRITTEN);
        self.out.push(']');
    }

    /// What stands outside of a class.
    fn outside(&mut self, item: &Item) -> Result<()> {
        match item {
            Item::One(c) if !is_written(*c) => {
                self.wrong(&format!("the control character U+{:04X} is not supported", *c as u32))
            }
            Item::One(c) => {
                self.literal(*c);
                Ok(())
            }
            _ => {
                self.out.push('[');
                self.item(item, false);
                self.take_off();
                Ok(())
            }
        }
    }

    fn class(&mut self) -> Result<()> {
        let begin = self.out.len();
        let negated = self.eat('^');
        self.out.push_str(if negated { "[^" } else { "[" });
        let mut plain = !negated;
        if self.peek() == Some(']') {
            return self.wrong("a class of characters is empty");
        }
        loop {
            let Some(c) = self.next() else { return self.wrong("expected ] at the end of the characters") };
            if c == ']' {
                self.out.push(']');
                if !plain {
                    self.out.insert(begin, '[');
                    self.take_off();
                }
                return Ok(());
            }
            let low = if c == '\\' { self.escape(true)? } else { Item::One(c) };
            let ranged = self.peek() == Some('-') && self.chars.get(self.at + 1).is_some_and(|c| *c != ']');
            let Item::One(from) = low else {
                if ranged {
                    return self.wrong("a range begins with a class of characters");
                }
                self.item(&low, negated);
                plain = false;
                continue;
            };
            // A range holds an unwritten character only if it begins below ' ' or reaches the delete character.
            plain &= is_written(from) && from >= ' ';
            if !ranged {
                self.literal(from);
                continue;
            }
            self.at += 1;
            let to = match self.next() {
                Some('\\') => self.escape(true)?,
                Some(c) => Item::One(c),
                None => return self.wrong("expected ] at the end of the characters"),
            };
            match to {
                Item::One(to) if from <= to => {
                    plain &= from > '\u{7f}' || to < '\u{7f}';
                    self.literal(from);
                    self.out.push('-');
                    self.literal(to);
                }
                _ => return self.wrong("a range of characters ends before it begins"),
            }
        }
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii_alphanumeric() || c == ' ' || c == '_' {
            self.out.push(c);
        } else {
            self.out.push_str(&format!("\\x{{{:x}}}", c as u32));
        }
    }

    /// `negated`: inside a negated class, where it must include what any dialect includes.
    fn item(&mut self, item: &Item, negated: bool) {
        const SPACE: &str = r"\t-\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}";
        const MORE_SPACE: &str = r"\x{1c}-\x{1f}\x{85}\x{feff}";
        match item {
            Item::One(c) => self.literal(*c),
            Item::Property(name) => self.out.push_str(name),
            Item::Set(letter) => {
                let text = match (letter, negated) {
                    ('d', false) => "[0-9]".into(),
                    ('d', true) => r"[\p{Nd}]".into(),
                    ('D', false) => r"[^\p{Nd}]".into(),
                    ('D', true) => "[^0-9]".into(),
                    ('w', false) => "[0-9A-Za-z_]".into(),
                    ('w', true) => r"[\p{L}\p{M}\p{N}_]".into(),
                    ('W', false) => r"[^\p{L}\p{M}\p{N}_]".into(),
                    ('W', true) => "[^0-9A-Za-z_]".into(),
                    ('s', false) => format!("[{SPACE}]"),
                    ('s', true) => format!("[{SPACE}{MORE_SPACE}]"),
                    (_, false) => format!("[^{SPACE}{MORE_SPACE}]"),
                    (_, true) => format!("[^{SPACE}]"),
                };
                self.out.push_str(&text);
            }
        }
    }
}

enum Item {
    One(char),
    /// The letter of `\d` and the like.
    Set(char),
    Property(String),
}

#[cfg(test)]
#[path = "pattern_tests.rs"]
mod tests;
