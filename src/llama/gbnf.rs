//! Checks a GBNF grammar and says what is wrong with it, before llama.cpp, which only prints that to stderr, and which
//! some grammars would make overflow its stack or never end. Never samples.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Longest grammar, in bytes.
const BYTES: usize = 256 << 10;
/// Most rules, groups in parentheses included.
const RULES: usize = 8192;
/// Deepest nesting of parentheses, and longest chain of rules that begin with each other.
const DEPTH: usize = 256;
/// Most characters and references once repetitions are written out, as llama.cpp does.
const ELEMENTS: u64 = 1 << 20;
/// Most times something is repeated; llama.cpp's own limit.
const REPEATS: u64 = 2000;
/// Most steps of llama.cpp's search for left recursion, which visits a rule once for each way to it.
const STEPS: u64 = 10_000_000;

/// Checks the grammar; its first symbol is `root`. `known` says whether a text is one token of the vocabulary.
///
/// # Errors
/// `Arg` naming the line and what was expected there, or the rule and what is wrong with it.
pub(super) fn check(text: &str, known: &dyn Fn(&str) -> bool) -> Result<()> {
    if text.len() > BYTES {
        return Err(Error::arg(format!("the grammar has {} bytes, expected at most {BYTES}", text.len())));
    }
    if text.contains('\0') {
        return Err(Error::arg("the grammar contains a zero byte"));
    }
    let mut parser =
        Parser { text: text.as_bytes(), known, at: 0, names: HashMap::new(), rules: Vec::new(), elements: 0 };
    parser.grammar()?;
    let Parser { names, rules, .. } = parser;
    if !names.contains_key("root") {
        return Err(Error::arg("the grammar has no rule named root"));
    }
    if let Some((name, _)) = names.iter().find(|(_, id)| rules[**id].is_none()) {
        return Err(Error::arg(format!("the grammar uses the rule {name}, which it does not define")));
    }
    let rules: Vec<Rule> = rules.into_iter().flatten().collect();
    let mut search = Search { nullable: nullable(&rules), steps: vec![None; rules.len()], rules: &rules };
    for id in 0..rules.len() {
        if search.steps(id, 0)? > STEPS {
            return Err(Error::arg("the grammar is too ambiguous: too many of its rules begin with each other"));
        }
    }
    Ok(())
}

/// Alternatives, each a sequence.
type Rule = Vec<Vec<Item>>;

struct Item {
    /// The rule it stands for; `None` for characters.
    rule: Option<usize>,
    optional: bool,
    times: u64,
    elements: u64,
}

struct Parser<'a> {
    text: &'a [u8],
    known: &'a dyn Fn(&str) -> bool,
    at: usize,
    names: HashMap<&'a str, usize>,
    rules: Vec<Option<Rule>>,
    elements: u64,
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

    fn skip(&mut self, most: usize, good: impl Fn(u8) -> bool) -> usize {
        let rest = &self.text[self.at..];
        let n = rest.iter().take(most).take_while(|b| good(**b)).count();
        self.at += n;
        n
    }

    fn space(&mut self, newlines: bool) {
        loop {
            self.skip(usize::MAX, |b| matches!(b, b' ' | b'\t') || newlines && matches!(b, b'\r' | b'\n'));
            if self.peek() != Some(b'#') {
                return;
            }
            self.skip(usize::MAX, |b| !matches!(b, b'\r' | b'\n'));
        }
    }

    fn name(&mut self) -> Result<usize> {
        let from = self.at;
        if self.skip(usize::MAX, |b| b.is_ascii_alphanumeric() || b == b'-') == 0 {
            return self.wrong("the name of a rule");
        }
        let name = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
        if let Some(&id) = self.names.get(name) {
            return Ok(id);
        }
        let id = self.new_rule()?;
        self.names.insert(name, id);
        Ok(id)
    }

    fn new_rule(&mut self) -> Result<usize> {
        if self.rules.len() >= RULES {
            return Err(Error::arg(format!("the grammar has more than {RULES} rules and groups")));
        }
        self.rules.push(None);
        Ok(self.rules.len() - 1)
    }

    fn number(&mut self) -> Result<u64> {
        let from = self.at;
        if self.skip(6, |b| b.is_ascii_digit()) == 0 {
            return self.wrong("a number");
        }
        let digits = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
        match digits.parse() {
            Ok(number) if number <= REPEATS => Ok(number),
            _ => self.wrong(&format!("at most {REPEATS} repetitions")),
        }
    }

    fn grammar(&mut self) -> Result<()> {
        self.space(true);
        while self.peek().is_some() {
            let id = self.name()?;
            self.space(false);
            if !self.text[self.at..].starts_with(b"::=") {
                return self.wrong("::= after the name of a rule");
            }
            self.at += 3;
            self.space(true);
            let rule = self.alternatives(0)?;
            self.rules[id] = Some(rule);
            if !matches!(self.peek(), None | Some(b'\r' | b'\n')) {
                return self.wrong("a symbol, or the end of the line");
            }
            self.space(true);
        }
        Ok(())
    }

    fn alternatives(&mut self, depth: usize) -> Result<Rule> {
        let mut all = vec![self.sequence(depth)?];
        while self.eat(b'|') {
            self.space(true);
            all.push(self.sequence(depth)?);
        }
        Ok(all)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Item>> {
        let mut items: Vec<Item> = Vec::new();
        // Repetitions of a repetition multiply.
        while let Some(byte) = self.peek() {
            let item = match byte {
                b'*' | b'+' | b'?' | b'{' => {
                    let Some(item) = items.last_mut().filter(|item| item.elements > 0) else {
                        return self.wrong("something to repeat before *, +, ? or {");
                    };
                    let (least, times) = self.repetition()?;
                    item.optional |= least == 0;
                    item.times = item.times.saturating_mul(times);
                    self.count(item.elements.saturating_mul(item.times))?;
                    self.space(depth > 0);
                    continue;
                }
                b'"' => self.literal()?,
                b'[' => self.class()?,
                b'<' | b'!' => self.token()?,
                b'.' => {
                    self.at += 1;
                    1
                }
                b'(' => {
                    if depth >= DEPTH {
                        return self.wrong(&format!("at most {DEPTH} parentheses inside each other"));
                    }
                    self.at += 1;
                    self.space(true);
                    let id = self.new_rule()?;
                    let rule = self.alternatives(depth + 1)?;
                    self.rules[id] = Some(rule);
                    if !self.eat(b')') {
                        return self.wrong("a symbol or )");
                    }
                    items.push(Item { rule: Some(id), optional: false, times: 1, elements: 1 });
                    self.space(depth > 0);
                    continue;
                }
                b if b.is_ascii_alphanumeric() || b == b'-' => {
                    let id = self.name()?;
                    items.push(Item { rule: Some(id), optional: false, times: 1, elements: 1 });
                    self.count(1)?;
                    self.space(depth > 0);
                    continue;
                }
                _ => break,
            };
            items.push(Item { rule: None, optional: item == 0, times: 1, elements: item });
            self.count(item)?;
            self.space(depth > 0);
        }
        Ok(items)
    }

    fn count(&mut self, elements: u64) -> Result<()> {
        self.elements = self.elements.saturating_add(elements);
        if self.elements > ELEMENTS {
            return Err(Error::arg("the grammar is too large once its repetitions are written out"));
        }
        Ok(())
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`: the least times, and how many are written out.
    fn repetition(&mut self) -> Result<(u64, u64)> {
        let sign = self.peek();
        self.at += 1;
        match sign {
            Some(b'*') => return Ok((0, 1)),
            Some(b'+') => return Ok((1, 1)),
            Some(b'?') => return Ok((0, 1)),
            _ => self.space(false),
        }
        let least = self.number()?;
        self.space(false);
        let mut most = least;
        if self.eat(b',') {
            self.space(false);
            if self.peek().is_some_and(|b| b.is_ascii_digit()) {
                most = self.number()?;
                self.space(false);
            }
        }
        if most < least {
            return self.wrong(&format!("at least {least} after the comma"));
        }
        if !self.eat(b'}') {
            return self.wrong("} after the repetitions");
        }
        Ok((least, most.max(1)))
    }

    fn literal(&mut self) -> Result<u64> {
        self.at += 1;
        let mut characters = 0;
        while !self.eat(b'"') {
            self.character("\" at the end of the text")?;
            characters += 1;
        }
        Ok(characters)
    }

    fn class(&mut self) -> Result<u64> {
        self.at += 1;
        self.eat(b'^');
        let mut characters = 0;
        while !self.eat(b']') {
            self.character("] at the end of the characters")?;
            characters += 1;
        }
        Ok(characters)
    }

    fn character(&mut self, end: &str) -> Result<()> {
        let Some(byte) = self.peek() else { return self.wrong(end) };
        self.at += 1;
        if byte != b'\\' {
            // The bytes that continue a codepoint belong to it.
            self.skip(3, |b| b & 0xc0 == 0x80);
            return Ok(());
        }
        let escape = self.peek();
        self.at += usize::from(escape.is_some());
        let digits = match escape {
            Some(b'x') => 2,
            Some(b'u') => 4,
            Some(b'U') => 8,
            Some(b't' | b'r' | b'n' | b'\\' | b'"' | b'[' | b']' | b'-') => return Ok(()),
            _ => return self.wrong("one of x u U t r n \\ \" [ ] - after a backslash"),
        };
        if self.skip(digits, |b| b.is_ascii_hexdigit()) != digits {
            return self.wrong(&format!("{digits} hexadecimal digits"));
        }
        Ok(())
    }

    /// `<[id]>` or `<text>`: one token, whatever its text.
    fn token(&mut self) -> Result<u64> {
        self.eat(b'!');
        let from = self.at;
        if !self.eat(b'<') {
            return self.wrong("< after !");
        }
        self.skip(256, |b| !matches!(b, b'>' | b'\n'));
        if !self.eat(b'>') {
            return self.wrong("> at the end of the token");
        }
        let text = std::str::from_utf8(&self.text[from..self.at]).unwrap_or_default();
        let number = |text: &str| text.strip_suffix("]>").is_some_and(|digits| digits.parse::<u32>().is_ok());
        let good = text.strip_prefix("<[").map_or_else(|| (self.known)(text), number);
        if good { Ok(1) } else { self.wrong(&format!("a token that is in the vocabulary instead of {text}")) }
    }
}

/// Which rules can be empty.
fn nullable(rules: &[Rule]) -> Vec<bool> {
    let mut nullable = vec![false; rules.len()];
    loop {
        let mut changed = false;
        for (id, rule) in rules.iter().enumerate() {
            let empty = |item: &Item| item.optional || item.rule.is_some_and(|r| nullable[r]);
            if !nullable[id] && rule.iter().any(|sequence| sequence.iter().all(empty)) {
                nullable[id] = true;
                changed = true;
            }
        }
        if !changed {
            return nullable;
        }
    }
}

struct Search<'a> {
    rules: &'a [Rule],
    nullable: Vec<bool>,
    /// Known, or 0 while it is being found.
    steps: Vec<Option<u64>>,
}

impl Search<'_> {
    /// Steps of llama.cpp's search from a rule, through all that it can begin with.
    fn steps(&mut self, id: usize, depth: usize) -> Result<u64> {
        match self.steps[id] {
            Some(0) => return Err(Error::arg("a rule of the grammar begins with itself (left recursion)")),
            Some(known) => return Ok(known),
            None if depth >= DEPTH => {
                return Err(Error::arg(format!(
                    "the grammar has a chain of more than {DEPTH} rules that begin with each other"
                )));
            }
            None => self.steps[id] = Some(0),
        }
        let mut steps = 1u64;
        let rules = self.rules;
        for sequence in &rules[id] {
            for item in sequence {
                let Some(rule) = item.rule else { if item.optional { continue } else { break } };
                steps = steps.saturating_add(self.steps(rule, depth + 1)?.saturating_mul(item.times));
                if !item.optional && !self.nullable[rule] {
                    break;
                }
            }
        }
        self.steps[id] = Some(steps);
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Result;

    fn check(grammar: &str) -> Result<()> {
        super::check(grammar, &|token| token == "<x>")
    }

    fn refusal(grammar: &str) -> String {
        check(grammar).expect_err(grammar).message().to_owned()
    }

    #[test]
    fn grammars_as_people_write_them_pass() {
        for good in [
            "root ::= \"yes\" | \"no\"",
            "# a comment\nroot ::= item+ # more\nitem ::= \"- \" [^\\r\\n\\x0b-\\x0c]{1,20} \"\\n\"\n",
            "root ::= (\n  \"a\" |\n  b\n)*\n\nb ::= [\\u00e9é] . <[3]> !<x>\n",
            "root ::= \"[\" (root (\",\" root){0,3})? \"]\"",
            "root ::= \"\"",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_refusal_says_where_and_what_was_expected() {
        assert!(refusal("root ::= \"a\"\nb := \"c\"").ends_with("line 2: expected ::= after the name of a rule"));
        assert!(refusal("root ::= \"a").contains("expected \" at the end"));
        assert!(refusal("root ::= [a").contains("expected ] at the end"));
        assert!(refusal("root ::= (\"a\"").contains("expected a symbol or )"));
        assert!(refusal("root ::= * \"a\"").contains("something to repeat"));
        assert!(refusal("root ::= \"\\q\"").contains("after a backslash"));
        assert!(refusal("root ::= \"a\"{3,1}").contains("at least 3"));
        assert!(refusal("root ::= \"a\"{9999}").contains("at most 2000 repetitions"));
        assert!(refusal("root ::= a").contains("uses the rule a"));
        assert!(refusal("a ::= \"b\"").contains("no rule named root"));
        assert!(refusal("").contains("no rule named root"));
        assert!(refusal("root ::= <y>").ends_with("a token that is in the vocabulary instead of <y>"));
        assert!(refusal("root ::= <[1>").contains("instead of <[1>"));
    }

    #[test]
    fn grammars_that_would_hang_or_overflow_are_refused() {
        assert!(refusal("root ::= root \"a\"").contains("left recursion"));
        // Hidden behind rules that may be empty.
        assert!(refusal("root ::= b root \"x\" | \"y\"\nb ::= c\nc ::= \"\" | \"z\"").contains("left recursion"));
        assert!(refusal(&format!("root ::= {}\"a\"{}", "(".repeat(9999), ")".repeat(9999))).contains("parentheses"));
        let doubling: String = (0..60).map(|i| format!("r{i} ::= r{0} | r{0}\n", i + 1)).collect();
        assert!(refusal(&format!("root ::= r0\n{doubling}r60 ::= \"a\"")).contains("too ambiguous"));
        let chain: String = (0..2000).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
        assert!(refusal(&format!("root ::= r0\n{chain}r2000 ::= \"a\"")).contains("chain"));
        let long = format!("root ::= \"{}\"{{2000}}", "a".repeat(10_000));
        assert!(refusal(&long).contains("too large"));
    }
}
