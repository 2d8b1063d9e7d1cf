//! Writes the rules of a grammar as llguidance's Lark dialect. Never reads a grammar.
//!
//! A rule without recursion becomes a terminal, which is matched as one regular expression; adjacent regular parts of
//! other rules are merged likewise. Terminals are matched greedily, which is how terminals in a recursive grammar are
//! told apart.

use std::fmt::Write;

use crate::types::TokenId;

/// Writes rules as Lark, with rule number `root` as the start symbol.
pub(super) fn write(rules: &[Node], root: usize) -> String {
    let (regular, nullable) = (regular(rules), nullable(rules));
    let (out, terminals) = (String::new(), String::new());
    let mut lark = Lark { regular: &regular, nullable: &nullable, out, terminals, made: 0 };
    lark.all(rules, root);
    lark.out + &lark.terminals
}

/// The parts of a rule.
#[derive(Debug)]
pub(super) enum Node {
    /// A regular expression, for a literal text or a class of characters.
    Regex {
        text: String,
        empty: bool,
    },
    /// A token, or any token but that one, whatever its text.
    Token {
        id: TokenId,
        not: bool,
    },
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Node {
    /// Calls `rule` for each rule it names, and returns whether it names a token.
    fn names(&self, rule: &mut dyn FnMut(usize)) -> bool {
        match self {
            Node::Regex { .. } => false,
            Node::Token { .. } => true,
            Node::Rule(number) => {
                rule(*number);
                false
            }
            Node::Sequence(nodes) | Node::Choice(nodes) => {
                // Visits all of them; `any` would stop early.
                nodes.iter().map(|node| node.names(rule)).filter(|token| *token).count() > 0
            }
            Node::Repeat(node, ..) => node.names(rule),
        }
    }

    fn is_regular(&self, rules: &[bool]) -> bool {
        let mut all = true;
        let tokens = self.names(&mut |rule| all &= rules[rule]);
        all && !tokens
    }

    fn is_nullable(&self, rules: &[bool]) -> bool {
        match self {
            Node::Regex { empty, .. } => *empty,
            Node::Token { .. } => false,
            Node::Rule(number) => rules[*number],
            Node::Sequence(nodes) => nodes.iter().all(|node| node.is_nullable(rules)),
            Node::Choice(nodes) => nodes.iter().any(|node| node.is_nullable(rules)),
            Node::Repeat(node, least, _) => *least == 0 || node.is_nullable(rules),
        }
    }
}

/// Which rules are regular: not recursive, and naming neither tokens nor rules that aren't regular.
fn regular(rules: &[Node]) -> Vec<bool> {
    // Bottom up, from rules that name no others.
    let mut regular = vec![false; rules.len()];
    let mut waits = vec![0usize; rules.len()];
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    let mut ready = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let mut named = Vec::new();
        let tokens = rule.names(&mut |other| named.push(other));
        named.sort_unstable();
        named.dedup();
        waits[number] = named.len() + usize::from(tokens);
        named.iter().for_each(|other| users[*other].push(number));
        if waits[number] == 0 {
            ready.push(number);
        }
    }
    while let Some(number) = ready.pop() {
        regular[number] = true;
        for &user in &users[number] {
            waits[user] -= 1;
            if waits[user] == 0 {
                ready.push(user);
            }
        }
    }
    regular
}

/// Which rules can match the empty text.
fn nullable(rules: &[Node]) -> Vec<bool> {
    let mut nullable = vec![false; rules.len()];
    loop {
        let before = nullable.clone();
        for (number, rule) in rules.iter().enumerate() {
            nullable[number] = nullable[number] || rule.is_nullable(&nullable);
        }
        if nullable == before {
            return nullable;
        }
    }
}

/// The Lark output.
struct Lark<'a> {
    regular: &'a [bool],
    nullable: &'a [bool],
    out: String,
    /// Definitions of the terminals, which come last.
    terminals: String,
    made: usize,
}

impl Lark<'_> {
    fn all(&mut self, rules: &[Node], root: usize) {
        self.out.push_str("start: ");
        self.reference(root);
        self.out.push('\n');
        for (number, rule) in rules.iter().enumerate() {
            if self.regular[number] {
                let text = terminal(rule);
                let _ = writeln!(self.terminals, "T{number}: {text}");
            } else {
                let _ = write!(self.out, "r{number}: ");
                self.rule(rule);
                self.out.push('\n');
            }
        }
    }

    /// A reference to a rule, inside a rule.
    fn reference(&mut self, number: usize) {
        if self.regular[number] {
            self.lexeme(&format!("T{number}"), self.nullable[number]);
        } else {
            let _ = write!(self.out, "r{number}");
        }
    }

    /// A terminal inside a rule, where it must not match the empty text.
    fn lexeme(&mut self, text: &str, empty: bool) {
        if text == EMPTY {
            self.out.push_str("\"\"");
            return;
        }
        self.made += 1;
        let _ = writeln!(
            self.terminals,
            "L{}: {}",
            self.made,
            if empty { format!("({text}) & /(?s:.+)/") } else { text.into() }
        );
        let _ = write!(self.out, "L{}{}", self.made, if empty { "?" } else { "" });
    }

    fn rule(&mut self, node: &Node) {
        if node.is_regular(self.regular) {
            return self.lexeme(&terminal(node), node.is_nullable(self.nullable));
        }
        match node {
            Node::Regex { .. } => {}
            Node::Token { id, not } => {
                let _ = write!(self.out, "<[{}{id}]>", if *not { "^" } else { "" });
            }
            Node::Rule(number) => self.reference(*number),
            Node::Sequence(nodes) => {
                // Adjacent regular parts become one terminal.
                for run in nodes.chunk_by(|a, b| a.is_regular(self.regular) && b.is_regular(self.regular)) {
                    if run[0].is_regular(self.regular) {
                        let text = joined(run, " ");
                        self.lexeme(&text, run.iter().all(|node| node.is_nullable(self.nullable)));
                    } else {
                        self.out.push('(');
                        self.rule(&run[0]);
                        self.out.push(')');
                    }
                    self.out.push(' ');
                }
            }
            Node::Choice(nodes) => {
                for (i, node) in nodes.iter().enumerate() {
                    self.out.push_str(if i > 0 { " | (" } else { "(" });
                    self.rule(node);
                    self.out.push(')');
                }
            }
            Node::Repeat(node, least, most) => {
                self.out.push('(');
                self.rule(node);
                self.out.push(')');
                self.out.push_str(&repeated(*least, *most));
            }
        }
    }
}

/// The regular expression of the empty text.
const EMPTY: &str = "\"\"";

/// A regular node, written as a terminal.
fn terminal(node: &Node) -> String {
    match node {
        Node::Regex { text, empty: false } => format!("/{text}/"),
        Node::Regex { .. } | Node::Token { .. } => EMPTY.into(),
        Node::Rule(number) => format!("T{number}"),
        Node::Sequence(nodes) if nodes.is_empty() => EMPTY.into(),
        Node::Sequence(nodes) => joined(nodes, " "),
        Node::Choice(nodes) => joined(nodes, " | "),
        Node::Repeat(node, least, most) => format!("({}){}", terminal(node), repeated(*least, *most)),
    }
}

fn joined(nodes: &[Node], between: &str) -> String {
    if let [one] = nodes {
        return terminal(one);
    }
    nodes.iter().map(|node| format!("({})", terminal(node))).collect::<Vec<_>>().join(between)
}

fn repeated(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (least, most) => format!("{{{least},{}}}", most.map(|most| most.to_string()).unwrap_or_default()),
    }
}
