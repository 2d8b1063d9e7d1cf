//! Translates a GBNF grammar (llama.cpp's notation) into llguidance's Lark dialect, or says what is wrong with it.
//! Never compiles or samples.

use std::collections::HashMap;
use std::fmt::Write;

use super::FORMAT_BYTES;
use super::lark::{self, Node};
use crate::error::{Error, Result};
use crate::types::TokenId;

/// Most rules of a grammar.
const RULES: usize = 4096;
/// Deepest nesting of parentheses.
const DEPTH: usize = 128;
/// Largest repetition count.
const REPEATS: u32 = 100_000;

/// Translates to Lark; the start symbol is `root`. `token` returns the id of a text that is a single token.
///
/// # Errors
/// `Arg` naming the line and what was expected there, or the rule and what is wrong with it.
pub(super) fn translate(text: &str, token: &dyn Fn(&str) -> Option<TokenId>) -> Result<String> {
    if text.len() > FORMAT_BYTES {
        return Err(Error::arg(format!("the grammar has {} bytes, expected at most {FORMAT_BYTES}", text.len())));
    }
    let mut parser = Parser { text: text.as_bytes(), token, at: 0, numbers: HashMap::new(), rules: Vec::new() };
    parser.grammar()?;
    let Parser { numbers, rules, .. } = parser;
    let Some(root) = numbers.get("root").copied() else {
        return Err(Error::arg("the grammar has no rule named root"));
    };
    let undefined = numbers.iter().filter(|(_, number)| rules[**number].is_none()).min();
    if let Some((name, _)) = undefined {
        return Err(Error::arg(format!("the grammar uses the rule {name}, which it does not define")));
    }
    let rules: Vec<Node> = rules.into_iter().flatten().collect();
    Ok(lark::write(&rules, root))
}

struct Parser<'a> {
    text: &'a [u8],
    token: &'a dyn Fn(&str) -> Option<TokenId>,
    at: usize,
    numbers: HashMap<&'a str, usize>,
    rules: Vec<Option<Node>>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn wrong<T>(&self, expected: &str) -> Result<T> {
        let line = 1 + self.text[..self.at.min(self.text.len())].iter().filter(|b| **b == b'\n').count();
        Err(Error::arg(format!("the grammar can't be parsed: line {line}: expected {expected}")))
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    /// Consumes bytes while they are `good`, at most `most`.
    fn take(&mut self, most: usize, good: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let n = rest.iter().take(most).take_while(|b| good(**b)).count();
        self.at += n;
        std::str::from_utf8(&rest[..n]).unwrap_or_default()
    }

    fn space(&mut self, newlines: bool) {
        loop {
            self.take(usize::MAX, |b| matches!(b, b' ' | b'\t') || newlines && matches!(b, b'\r' | b'\n'));
            if self.peek() != Some(b'#') {
                return;
            }
            // Not `take`, since a comment may be cut within a character.
            self.at += self.text[self.at..].iter().take_while(|b| !matches!(b, b'\r' | b'\n')).count();
        }
    }

    fn name(&mut self) -> Result<usize> {
        let name = self.take(usize::MAX, |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if name.is_empty() {
            return self.wrong("the name of a rule");
        }
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.rules.len() >= RULES {
            return Err(Error::arg(format!("the grammar has more than {RULES} rules")));
        }
        self.rules.push(None);
        self.numbers.insert(name, self.rules.len() - 1);
        Ok(self.rules.len() - 1)
    }

    fn grammar(&mut self) -> Result<()> {
        self.space(true);
        while self.peek().is_some() {
            let number = self.name()?;
            self.space(false);
            if !self.text[self.at..].starts_with(b"::=") {
                return self.wrong("::= after the name of a rule");
            }
            self.at += 3;
            self.space(true);
            let rule = self.choice(0)?;
            self.rules[number] = Some(rule);
            if !matches!(self.peek(), None | Some(b'\r' | b'\n')) {
                return self.wrong("a symbol, or the end of the line");
            }
            self.space(true);
        }
        Ok(())
    }

    fn choice(&mut self, depth: usize) -> Result<Node> {
        let mut all = vec![self.sequence(depth)?];
        while self.eat(b'|') {
            self.space(true);
            all.push(self.sequence(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Choice(all) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Node> {
        let mut nodes: Vec<Node> = Vec::new();
        while let Some(byte) = self.peek() {
            let node = match byte {
                b'*' | b'+' | b'?' | b'{' => {
                    let Some(node) = nodes.pop() else {
                        return self.wrong("something to repeat before *, +, ? or {");
                    };
                    let (least, most) = self.repetition()?;
                    if most == Some(0) { Node::Sequence(Vec::new()) } else { Node::Repeat(Box::new(node), least, most) }
                }
                b'"' => self.literal()?,
                b'[' => self.class()?,
                b'<' | b'!' => self.token()?,
                b'.' => {
                    self.at += 1;
                    Node::Regex { text: "(?s:.)".into(), empty: false }
                }
                b'(' => {
                    if depth >= DEPTH {
                        return self.wrong(&format!("at most {DEPTH} parentheses inside each other"));
                    }
                    self.at += 1;
                    self.space(true);
                    let inner = self.choice(depth + 1)?;
                    if !self.eat(b')') {
                        return self.wrong("a symbol or )");
                    }
                    inner
                }
                b if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_') => Node::Rule(self.name()?),
                _ => break,
            };
            nodes.push(node);
            self.space(depth > 0);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`.
    fn repetition(&mut self) -> Result<(u32, Option<u32>)> {
        let sign = self.peek();
        self.at += 1;
        match sign {
            Some(b'*') => return Ok((0, None)),
            Some(b'+') => return Ok((1, None)),
            Some(b'?') => return Ok((0, Some(1))),
            _ => self.space(false),
        }
        let least = self.number()?;
        self.space(false);
        let mut most = Some(least);
        if self.eat(b',') {
            self.space(false);
            most = if self.peek().is_some_and(|b| b.is_ascii_digit()) { Some(self.number()?) } else { None };
            self.space(false);
        }
        if most.is_some_and(|most| most < least) {
            return self.wrong(&format!("at least {least} after the comma"));
        }
        if !self.eat(b'}') {
            return self.wrong("} after the repetitions");
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<u32> {
        match self.take(9, |b| b.is_ascii_digit()).parse() {
            Ok(number) if number <= REPEATS => Ok(number),
            Ok(_) => self.wrong(&format!("at most {REPEATS} repetitions")),
            Err(_) => self.wrong("a number"),
        }
    }

    fn literal(&mut self) -> Result<Node> {
        self.at += 1;
        let mut text = String::new();
        while !self.eat(b'"') {
            let c = self.character("\" at the end of the text")?;
            written(c, &mut text);
        }
        Ok(Node::Regex { empty: text.is_empty(), text })
    }

    fn class(&mut self) -> Result<Node> {
        self.at += 1;
        let mut text = String::from(if self.eat(b'^') { "[^" } else { "[" });
        let begins = text.len();
        while !self.eat(b']') {
            let low = self.character("] at the end of the characters")?;
            let mut high = low;
            if self.peek() == Some(b'-') && self.text.get(self.at + 1).is_some_and(|b| *b != b']') {
                self.at += 1;
                high = self.character("] at the end of the characters")?;
            }
            // A range that ends before it begins is empty.
            if low <= high {
                written(low, &mut text);
                text.push('-');
                written(high, &mut text);
            }
        }
        match (text.len() > begins, text.as_str()) {
            (true, _) => text.push(']'),
            (false, "[^") => text = "(?s:.)".into(),
            _ => return self.wrong("at least one character between [ and ]"),
        }
        Ok(Node::Regex { text, empty: false })
    }

    fn character(&mut self, end: &str) -> Result<char> {
        let rest = &self.text[self.at..];
        let width = rest.first().map_or(0, |first| match first {
            0..0x80 => 1,
            0x80..0xe0 => 2,
            0xe0..0xf0 => 3,
            0xf0.. => 4,
        });
        let first = rest.get(..width).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|s| s.chars().next());
        let Some(c) = first else { return self.wrong(end) };
        self.at += width;
        if c != '\\' {
            return Ok(c);
        }
        let escape = self.peek();
        self.at += usize::from(escape.is_some());
        let digits = match escape {
            Some(b'x') => 2,
            Some(b'u') => 4,
            Some(b'U') => 8,
            Some(b't') => return Ok('\t'),
            Some(b'r') => return Ok('\r'),
            Some(b'n') => return Ok('\n'),
            Some(same @ (b'\\' | b'"' | b'[' | b']' | b'-')) => return Ok(same as char),
            _ => return self.wrong("one of x u U t r n \\ \" [ ] - after a backslash"),
        };
        let text = self.take(digits, |b| b.is_ascii_hexdigit());
        let code = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == digits);
        // Existing grammars use too large a code for "up to the last character".
        let code = code.map(|code| code.min(char::MAX as u32));
        match code.map(char::from_u32) {
            Some(Some(c)) => Ok(c),
            Some(None) => self.wrong("the number of a character"),
            None => self.wrong(&format!("{digits} hexadecimal digits")),
        }
    }

    /// `<[id]>` or `<text>`: a single token, whatever its text.
    fn token(&mut self) -> Result<Node> {
        let not = self.eat(b'!');
        let from = self.at;
        if !self.eat(b'<') {
            return self.wrong("< after !");
        }
        self.at += self.text[self.at..].iter().take(256).take_while(|b| !matches!(b, b'>' | b'\n')).count();
        if !self.eat(b'>') {
            return self.wrong("> at the end of the token");
        }
        let text = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
        let number = |digits: &str| digits.strip_suffix("]>").and_then(|digits| digits.parse().ok());
        match text.strip_prefix("<[").map_or_else(|| (self.token)(text), number) {
            Some(id) => Ok(Node::Token { id, not }),
            None => self.wrong(&format!("a token that is in the vocabulary instead of {text}")),
        }
    }
}

/// A character as a regular expression writes it, inside and outside of classes.
fn written(c: char, out: &mut String) {
    if c.is_ascii_alphanumeric() || c == ' ' {
        out.push(c);
    } else {
        let _ = write!(out, "\\x{{{:x}}}", c as u32);
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Result;

    fn translate(grammar: &str) -> Result<String> {
        super::translate(grammar, &|token| (token == "<x>").then_some(7))
    }

    fn refusal(grammar: &str) -> String {
        translate(grammar).expect_err(grammar).message().to_owned()
    }

    #[test]
    fn rules_without_recursion_are_terminals_and_neighbours_are_joined() {
        let lark = translate("root ::= item+\nitem ::= \"- \" [a-z]{1,20} \"\\n\"").unwrap();
        assert!(lark.starts_with("start: L1\n"), "{lark}");
        let lark = translate("root ::= \"[\" [ ]* (root (\",\" root)*)? \"]\"").unwrap();
        assert!(lark.contains("r0: L"), "{lark}");
        assert_eq!(lark.matches("\nL").count(), 3, "{lark}");
    }

    #[test]
    fn a_refusal_says_where_and_what_was_expected() {
        assert!(refusal("root ::= \"a\"\nb := \"c\"").ends_with("line 2: expected ::= after the name of a rule"));
        assert!(refusal("root ::= \"a").contains("expected \" at the end"));
        assert!(refusal("root ::= [a").contains("expected ] at the end"));
        assert!(refusal("root ::= []").contains("at least one character"));
        assert!(refusal("root ::= (\"a\"").contains("expected a symbol or )"));
        assert!(refusal("root ::= * \"a\"").contains("something to repeat"));
        assert!(refusal("root ::= \"\\q\"").contains("after a backslash"));
        assert!(refusal("root ::= \"\\ud800\"").contains("number of a character"));
        assert!(refusal("root ::= \"a\"{3,1}").contains("at least 3"));
        assert!(refusal("root ::= \"a\"{999999}").contains("at most 100000 repetitions"));
        assert!(refusal("root ::= a").contains("uses the rule a"));
        assert!(refusal("a ::= \"b\"").contains("no rule named root"));
        assert!(refusal("").contains("no rule named root"));
        assert!(refusal("root ::= <y>").ends_with("a token that is in the vocabulary instead of <y>"));
        assert!(refusal("root ::= <[1>").contains("instead of <[1>"));
        assert!(refusal(&format!("root ::= {}\"a\"{}", "(".repeat(9999), ")".repeat(9999))).contains("parentheses"));
    }
}
