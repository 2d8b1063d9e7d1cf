//! Follows one JSON object of an answer as it arrives: a tool call, or what is said in an object. Never waits for its
//! end to pass on what is certain.

use super::parts::{Delta, Wrapped};

/// What became of an object after more of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It goes on.
    More,
    /// It ended, and was passed on.
    Done,
    /// It is neither a call nor a response, and nothing of it was passed on.
    Other,
}

/// A part of an object, of which the next character is awaited.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Start,
    /// A key, or the end where there is no member yet.
    Key {
        first: bool,
    },
    InKey,
    Colon,
    Value,
    InString,
    InNested,
    InScalar,
    Next,
}

/// What of the object is passed on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Undecided,
    /// The value that is being read, from the offset on that was not passed on yet. [bytes]
    Passing {
        from: usize,
        text: bool,
        call: bool,
    },
    Passed,
}

/// An object up to where it arrived.
pub(super) struct Object {
    /// All of it.
    raw: String,
    place: Place,
    depth: usize,
    string: bool,
    escaped: bool,
    /// Where the key or the value begins that is being read. [bytes]
    begin: usize,
    key: String,
    name: Option<String>,
    arguments: Option<(usize, usize)>,
    role: Role,
    /// Number of the call that it is, if it is one.
    index: usize,
    wrapped: Wrapped,
}

impl Object {
    pub(super) fn new(index: usize, wrapped: Wrapped) -> Self {
        Object {
            raw: String::new(),
            place: Place::Start,
            depth: 0,
            string: false,
            escaped: false,
            begin: 0,
            key: String::new(),
            name: None,
            arguments: None,
            role: Role::Undecided,
            index,
            wrapped,
        }
    }

    /// All of it, for one that turned out to be something else.
    pub(super) fn into_raw(self) -> String {
        self.raw
    }

    /// Whether something was passed on.
    pub(super) fn is_passing(&self) -> bool {
        self.role != Role::Undecided
    }

    /// Whether it is a call of which the arguments have not ended.
    pub(super) fn is_open_call(&self) -> bool {
        matches!(self.role, Role::Passing { call: true, .. })
    }

    /// Adds a character. What is certain is passed on by [`Object::flush`], so that pieces stay as long as they came.
    pub(super) fn push(&mut self, c: char, names: &[String], out: &mut Vec<Delta>) -> Flow {
        let at = self.raw.len();
        self.raw.push(c);
        let white = matches!(c, ' ' | '\t' | '\n' | '\r');
        match self.place {
            Place::Start if c == '{' => self.place = Place::Key { first: true },
            Place::Key { .. } if c == '"' => (self.place, self.begin) = (Place::InKey, at),
            Place::Key { first: true } if c == '}' => return self.ends(),
            Place::InKey => {
                if self.ends_string(c) {
                    let Ok(key) = serde_json::from_str(&self.raw[self.begin..]) else { return self.breaks(at, out) };
                    (self.key, self.place) = (key, Place::Colon);
                }
            }
            Place::Colon if c == ':' => self.place = Place::Value,
            Place::Value if !white => {
                self.begin = at;
                self.place = match c {
                    '"' => Place::InString,
                    '{' | '[' => Place::InNested,
                    _ => Place::InScalar,
                };
                self.depth = usize::from(self.place == Place::InNested);
                if !self.value_begins(c, names, out) {
                    return Flow::Other;
                }
            }
            Place::InString => {
                if self.ends_string(c) {
                    return self.value_ends(self.raw.len(), names, out);
                }
            }
            Place::InNested => {
                if self.string {
                    self.string = !self.ends_string(c);
                } else {
                    match c {
                        '"' => self.string = true,
                        '{' | '[' => self.depth += 1,
                        '}' | ']' => self.depth -= 1,
                        _ => {}
                    }
                    if self.depth == 0 {
                        return self.value_ends(self.raw.len(), names, out);
                    }
                }
            }
            Place::InScalar if white || matches!(c, ',' | '}') => {
                if self.value_ends(at, names, out) == Flow::Other {
                    return Flow::Other;
                }
                return self.next(c, at, out);
            }
            Place::InScalar => {}
            Place::Next => return self.next(c, at, out),
            _ if white => {}
            _ => return self.breaks(at, out),
        }
        Flow::More
    }

    /// Passes on what arrived of the value.
    pub(super) fn flush(&mut self, out: &mut Vec<Delta>) {
        self.pass(self.raw.len(), out);
    }

    fn next(&mut self, c: char, at: usize, out: &mut Vec<Delta>) -> Flow {
        match c {
            ',' => self.place = Place::Key { first: false },
            '}' => return self.ends(),
            ' ' | '\t' | '\n' | '\r' => {}
            _ => return self.breaks(at, out),
        }
        Flow::More
    }

    /// Whether a string ends with that character, which is in it.
    fn ends_string(&mut self, c: char) -> bool {
        let escaped = self.escaped;
        self.escaped = c == '\\' && !escaped;
        c == '"' && !escaped
    }

    /// The value of `self.key` begins; `false` if the object is of no kind that is passed on.
    fn value_begins(&mut self, c: char, names: &[String], out: &mut Vec<Delta>) -> bool {
        if self.role != Role::Undecided {
            return true;
        }
        match self.key.as_str() {
            "name" => c == '"',
            "arguments" | "parameters" if c != '{' => false,
            "arguments" | "parameters" => self.name.is_none() || self.call(names, self.begin, out),
            "response" if self.wrapped != Wrapped::No => {
                let text = self.wrapped == Wrapped::Text && c == '"';
                self.role = Role::Passing { from: self.begin + usize::from(text), text, call: false };
                true
            }
            _ => true,
        }
    }

    fn value_ends(&mut self, end: usize, names: &[String], out: &mut Vec<Delta>) -> Flow {
        self.place = Place::Next;
        match (self.role, self.key.as_str()) {
            (Role::Passing { text, .. }, _) => {
                self.pass(end - usize::from(text), out);
                self.role = Role::Passed;
            }
            (Role::Undecided, "name") => {
                self.name = serde_json::from_str(&self.raw[self.begin..end]).ok();
                if let Some((from, to)) = self.arguments {
                    if !self.call(names, from, out) {
                        return Flow::Other;
                    }
                    self.pass(to, out);
                    self.role = Role::Passed;
                } else if !self.name.as_ref().is_some_and(|name| names.contains(name)) {
                    return Flow::Other;
                }
            }
            (Role::Undecided, "arguments" | "parameters") => self.arguments = Some((self.begin, end)),
            _ => {}
        }
        Flow::More
    }

    /// It is a call, with arguments from that offset on; `false` if there is no such tool.
    fn call(&mut self, names: &[String], from: usize, out: &mut Vec<Delta>) -> bool {
        let Some(name) = self.name.take().filter(|name| names.contains(name)) else { return false };
        out.push(Delta::Call { index: self.index, name });
        self.role = Role::Passing { from, text: false, call: true };
        true
    }

    /// Passes on the value up to an offset.
    fn pass(&mut self, end: usize, out: &mut Vec<Delta>) {
        let Role::Passing { from, text, call } = self.role else { return };
        let raw = self.raw.get(from..end).unwrap_or_default();
        let (shown, used) = if text { unescaped(raw) } else { (raw.to_owned(), raw.len()) };
        self.role = Role::Passing { from: from + used, text, call };
        if shown.is_empty() {
            return;
        }
        out.push(if call { Delta::Arguments { index: self.index, text: shown } } else { Delta::Text(shown) });
    }

    fn ends(&self) -> Flow {
        if self.is_passing() { Flow::Done } else { Flow::Other }
    }

    /// It is no JSON from there on. What was passed on stays.
    fn breaks(&mut self, at: usize, out: &mut Vec<Delta>) -> Flow {
        self.pass(at, out);
        self.ends()
    }
}

/// The text of the inside of a JSON string, and how much of it that is: an escape that is not complete is left.
fn unescaped(raw: &str) -> (String, usize) {
    let (mut text, mut used) = (String::new(), 0);
    while let Some(at) = raw[used..].find('\\').map(|at| used + at) {
        text.push_str(&raw[used..at]);
        used = at;
        let rest = &raw[at..];
        let unicode = rest.get(1..2) == Some("u");
        let high = unicode && rest.get(2..4).is_some_and(|digits| "d8 d9 da db".contains(&digits.to_lowercase()));
        let length = match (unicode, high) {
            (false, _) => 2,
            (true, false) => 6,
            (true, true) => 12,
        };
        // A character of several bytes after the backslash is no escape.
        let Some(escape) = rest.get(..length) else {
            if rest.len() < length {
                return (text, used);
            }
            text.push('\u{fffd}');
            used += 1;
            continue;
        };
        match serde_json::from_str::<String>(&format!("\"{escape}\"")) {
            Ok(one) => text.push_str(&one),
            Err(_) => text.push('\u{fffd}'),
        }
        used += length;
    }
    text.push_str(&raw[used..]);
    (text, raw.len())
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn an_escape_is_read_when_it_is_complete() {
        assert_eq!(unescaped(r"a\nb\"), ("a\nb".into(), 4));
        assert_eq!(unescaped(r"\u00e9\u00"), ("é".into(), 6));
        assert_eq!(unescaped(r"\ud83d\ude0"), (String::new(), 0));
        assert_eq!(unescaped(r"\ud83d\ude00!"), ("😀!".into(), 13));
        assert_eq!(unescaped(r"\ud83dabcdef"), ("\u{fffd}".into(), 12));
        assert_eq!(unescaped("\\é"), ("\u{fffd}é".into(), 3));
    }
}
