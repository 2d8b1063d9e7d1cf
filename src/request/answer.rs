//! Reads an answer's text as it arrives: what was thought, what is said, and the tools that are called. Never makes a
//! call.

use super::object::{Flow, Object};
use super::parts::{Delta, Parts, Reading, Reasoning, THINK, Wrapped};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Mistral's marker, if its token has a text.
const MARK: &str = "[TOOL_CALLS]";
const THOUGHT: &str = "</think>";

/// Reads one answer.
pub(crate) struct Reader {
    reading: Reading,
    thoughts: Thoughts,
    /// Text that is not decided yet.
    held: String,
    place: Place,
    calls: usize,
    broken_off: bool,
}

/// What is being read.
enum Place {
    /// Nothing yet but white space, or the beginning of what may be a call.
    Start,
    /// What is said. A call may follow.
    Text,
    /// Behind the marker of a call, or between calls of a list.
    Before,
    /// An object.
    Inside { object: Box<Object>, marked: bool },
    /// Behind an object.
    After { marked: bool },
}

impl Reader {
    pub(crate) fn new(reading: Reading) -> Self {
        let thoughts = Thoughts::new(reading.reasoning);
        let mut reader =
            Self { reading, thoughts, held: String::new(), place: Place::Start, calls: 0, broken_off: false };
        if reader.is_plain() {
            reader.place = Place::Text;
        }
        reader
    }

    /// The parts of a whole answer.
    pub(crate) fn parts(reading: Reading, text: &str) -> Parts {
        let mut reader = Reader::new(reading);
        let mut parts = Parts::default();
        reader.push(text).into_iter().for_each(|delta| parts.add(delta));
        reader.finish().into_iter().for_each(|delta| parts.add(delta));
        parts.broken_off = reader.broken_off;
        parts
    }

    /// Whether text is only said.
    fn is_plain(&self) -> bool {
        self.reading.tools.is_empty() && self.reading.wrapped == Wrapped::No
    }

    /// Adds text, and returns what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Delta> {
        let mut out = Vec::new();
        let said = self.thoughts.push(text, &mut out);
        self.said(&said, &mut out);
        out
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Vec<Delta> {
        let mut out = Vec::new();
        let said = self.thoughts.finish(&mut out);
        self.said(&said, &mut out);
        match std::mem::replace(&mut self.place, Place::Text) {
            Place::Inside { object, .. } if object.is_passing() => self.broken_off = object.is_open_call(),
            // Text that only resembled a call, or broke off, is shown.
            Place::Inside { object, .. } => self.held += &object.into_raw(),
            Place::After { .. } => self.held.clear(),
            Place::Start | Place::Text | Place::Before => {}
        }
        let held = std::mem::take(&mut self.held);
        // White space behind a call is nothing that is said.
        if !(held.is_empty() || self.calls > 0 && held.trim().is_empty()) {
            out.push(Delta::Text(held));
        }
        out
    }

    /// Whether the answer broke off in the arguments of its last call, once it is finished.
    #[cfg(any(feature = "daemon", test))]
    pub(crate) fn broke_off(&self) -> bool {
        self.broken_off
    }

    fn said(&mut self, text: &str, out: &mut Vec<Delta>) {
        if self.is_plain() {
            if !text.is_empty() {
                out.push(Delta::Text(text.to_owned()));
            }
            return;
        }
        for c in text.chars() {
            self.one(c, out);
        }
        match &mut self.place {
            Place::Text => self.show(out),
            Place::Inside { object, .. } => object.flush(out),
            _ => {}
        }
    }

    /// Reads one character. All that may still turn out to be text is in `held`, or in the object behind it.
    fn one(&mut self, c: char, out: &mut Vec<Delta>) {
        let white = c.is_whitespace();
        match &mut self.place {
            Place::Text => {
                self.held.push(c);
                if c == '>' && self.held.ends_with(OPEN) {
                    self.held.truncate(self.held.len() - OPEN.len());
                    let text = self.held.trim_end();
                    if !text.is_empty() {
                        out.push(Delta::Text(text.to_owned()));
                    }
                    self.held = OPEN.to_owned();
                    self.place = Place::Before;
                }
            }
            Place::Start | Place::Before if c == '{' => {
                let marked = matches!(self.place, Place::Before);
                let mut object = Box::new(Object::new(self.calls, self.reading.wrapped));
                object.push(c, &self.reading.tools, out);
                self.place = Place::Inside { object, marked };
            }
            Place::Start => {
                self.held.push(c);
                let begun = self.held.trim_start();
                // A list of calls, perhaps behind its marker.
                let listed = MARK.starts_with(begun)
                    || begun.strip_prefix(MARK).is_some_and(|list| list.trim().is_empty() || list.trim() == "[")
                    || begun.strip_prefix('[').is_some_and(|rest| rest.trim().is_empty());
                if !listed {
                    self.place = Place::Text;
                    // It may be the last character of a marker.
                    if let Some(last) = self.held.pop() {
                        self.one(last, out);
                    }
                }
            }
            Place::Before if white || c == '[' => self.held.push(c),
            Place::Before => {
                self.held.push(c);
                self.place = Place::Text;
            }
            Place::Inside { object, marked } => {
                let (before, marked) = (out.len(), *marked);
                let flow = object.push(c, &self.reading.tools, out);
                if out[before..].iter().any(|delta| matches!(delta, Delta::Call { .. })) {
                    self.calls += 1;
                }
                if flow == Flow::More {
                    return;
                }
                let Place::Inside { object, .. } = std::mem::replace(&mut self.place, Place::After { marked }) else {
                    return;
                };
                if flow == Flow::Done {
                    self.held.clear();
                } else {
                    self.held += &object.into_raw();
                    self.place = Place::Text;
                }
            }
            Place::After { marked } => {
                self.held.push(c);
                let rest = self.held.trim_start().trim_start_matches(']').trim_start();
                if matches!(rest, ",") {
                    self.held.clear();
                    self.place = if *marked { Place::Before } else { Place::Start };
                } else if rest == CLOSE {
                    self.held.clear();
                    self.place = Place::Text;
                } else if !CLOSE.starts_with(rest) {
                    self.place = Place::Text;
                }
            }
        }
    }

    /// Shows what is held but for white space and a part of a marker at its end.
    fn show(&mut self, out: &mut Vec<Delta>) {
        let cut = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n])).unwrap_or(0);
        let end = self.held[..self.held.len() - cut].trim_end().len();
        if end > 0 {
            let rest = self.held.split_off(end);
            out.push(Delta::Text(std::mem::replace(&mut self.held, rest)));
        }
    }
}

/// Takes the reasoning off the beginning of an answer.
struct Thoughts {
    place: Thought,
    held: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Thought {
    /// It may begin.
    Awaited,
    /// It has begun; nothing but white space came.
    Begun,
    Inside,
    /// It ended; white space before the answer is left out.
    Ended,
    Over,
}

impl Thoughts {
    fn new(reasoning: Reasoning) -> Self {
        let place = match reasoning {
            Reasoning::No => Thought::Over,
            Reasoning::Marked => Thought::Awaited,
            Reasoning::Begun => Thought::Begun,
        };
        Self { place, held: String::new() }
    }

    /// Adds text, and returns what is no reasoning.
    fn push(&mut self, text: &str, out: &mut Vec<Delta>) -> String {
        if self.place == Thought::Over {
            return text.to_owned();
        }
        self.held.push_str(text);
        if self.place == Thought::Awaited {
            let begun = self.held.trim_start();
            if THINK.starts_with(begun) && begun.len() < THINK.len() {
                return String::new();
            }
            match begun.strip_prefix(THINK).map(str::to_owned) {
                Some(rest) => (self.place, self.held) = (Thought::Begun, rest),
                None => return self.over(),
            }
        }
        if self.place == Thought::Begun {
            self.held = self.held.trim_start().to_owned();
            if self.held.is_empty() {
                return String::new();
            }
            self.place = Thought::Inside;
        }
        if self.place == Thought::Inside {
            match self.held.split_once(THOUGHT).map(|(thought, rest)| (thought.trim_end().to_owned(), rest.to_owned()))
            {
                Some((thought, rest)) => {
                    self.tell(thought, out);
                    (self.place, self.held) = (Thought::Ended, rest);
                }
                None => {
                    let cut = (1..THOUGHT.len()).rev().find(|n| self.held.ends_with(&THOUGHT[..*n])).unwrap_or(0);
                    let end = self.held[..self.held.len() - cut].trim_end().len();
                    let rest = self.held.split_off(end);
                    let thought = std::mem::replace(&mut self.held, rest);
                    self.tell(thought, out);
                    return String::new();
                }
            }
        }
        self.held = self.held.trim_start().to_owned();
        if self.held.is_empty() { String::new() } else { self.over() }
    }

    fn over(&mut self) -> String {
        self.place = Thought::Over;
        std::mem::take(&mut self.held)
    }

    fn tell(&self, thought: String, out: &mut Vec<Delta>) {
        if !thought.is_empty() {
            out.push(Delta::Reasoning(thought));
        }
    }

    /// What is left at the end of the answer and no reasoning.
    fn finish(&mut self, out: &mut Vec<Delta>) -> String {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Thought::Inside => {
                self.tell(held.trim_end().to_owned(), out);
                String::new()
            }
            Thought::Awaited | Thought::Over => held,
            Thought::Begun | Thought::Ended => String::new(),
        }
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
