//! Finds tool calls in an answer's text. Never makes one.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Mistral's marker, if its token has a text.
const MARK: &str = "[TOOL_CALLS]";

/// A tool call in an answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON text.
    pub(crate) arguments: String,
}

/// Calls in the form of OpenAI's messages, each with an id of its own.
pub(crate) fn calls_json(generation: &str, calls: Vec<Call>) -> Vec<Value> {
    let call = |(i, Call { name, arguments }): (usize, Call)| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"id": format!("call-{generation}-{i}"), "type": "function", "function": function})
    };
    calls.into_iter().enumerate().map(call).collect()
}

/// Parses an answer as it arrives: text that can't be part of a call is passed on at once.
pub(crate) struct Reader {
    /// Tools that may be called.
    names: Arc<[String]>,
    held: String,
    shown: bool,
}

impl Reader {
    pub(crate) fn new(names: Arc<[String]>) -> Self {
        Self { names, held: String::new(), shown: false }
    }

    /// Adds text, and returns the part that can be shown.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let begun = self.held.trim_start();
        // An answer that is JSON from its first character may be a call as a whole.
        if !self.shown && (begun.is_empty() || begun.starts_with(['{', '['])) {
            return String::new();
        }
        let end = self.held.find(OPEN).unwrap_or_else(|| {
            let cut = (1..OPEN.len()).rev().find(|n| self.held.ends_with(&OPEN[..*n]));
            self.held.len() - cut.unwrap_or(0)
        });
        let rest = self.held.split_off(end);
        let shown = std::mem::replace(&mut self.held, rest);
        self.shown |= !shown.is_empty();
        shown
    }

    /// The remaining text, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        match self.calls(&held) {
            Some((rest, calls)) => (rest, calls),
            // Text that only resembled a call, or broke off, is shown.
            None => (held, Vec::new()),
        }
    }

    fn calls(&self, text: &str) -> Option<(String, Vec<Call>)> {
        if !text.contains(OPEN) {
            let whole = text.trim();
            let whole = whole.strip_prefix(MARK).unwrap_or(whole);
            return Some((String::new(), self.all(whole)?));
        }
        let (mut rest, mut calls, mut left) = (String::new(), Vec::new(), text);
        while let Some((before, after)) = left.split_once(OPEN) {
            // The last call may lack its closing marker if that is a token without text.
            let (inside, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
            rest.push_str(before.trim_end());
            calls.extend(self.all(inside.trim())?);
            left = behind;
        }
        rest.push_str(left.trim());
        Some((rest, calls))
    }

    /// All calls in a JSON text, at least one; `None` if it is anything else.
    fn all(&self, json: &str) -> Option<Vec<Call>> {
        let calls =
            if json.starts_with('[') { parts(json)?.into_iter().map(|(_, call)| call).collect() } else { vec![json] };
        calls.into_iter().map(|call| self.call(call)).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty())
    }

    fn call(&self, json: &str) -> Option<Call> {
        let members = parts(json)?;
        let member = |key: &str| members.iter().rev().find(|(name, _)| name == key).map(|(_, value)| *value);
        let name: String = serde_json::from_str(member("name")?).ok()?;
        let arguments = member("arguments").or_else(|| member("parameters"))?;
        let known = self.names.contains(&name) && arguments.starts_with('{');
        known.then(|| Call { name, arguments: arguments.to_owned() })
    }
}

/// The members of an object or the items of an array (with empty names), each in its original notation, since numbers
/// may have more digits than any type.
fn parts(json: &str) -> Option<Vec<(String, &str)>> {
    let object = json.starts_with('{');
    let mut rest = json.strip_prefix(if object { '{' } else { '[' })?.trim_start();
    let close = if object { '}' } else { ']' };
    let mut all = Vec::new();
    loop {
        if let Some(behind) = rest.strip_prefix(close).filter(|_| all.is_empty()) {
            return behind.trim().is_empty().then_some(all);
        }
        let mut name = String::new();
        if object {
            let (written, behind) = value(rest)?;
            name = serde_json::from_str(written).ok()?;
            rest = behind.strip_prefix(':')?.trim_start();
        }
        let (written, behind) = value(rest)?;
        all.push((name, written));
        match behind.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => return behind.strip_prefix(close)?.trim().is_empty().then_some(all),
        }
    }
}

/// The JSON value at the start of a text, in its original notation, and the rest.
fn value(text: &str) -> Option<(&str, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    let (written, behind) = text.split_at_checked(values.byte_offset())?;
    Some((written, behind.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shown text and the calls of a text that arrives character by character.
    fn read(text: &str) -> (String, Vec<(String, String)>) {
        let mut reader = Reader::new(["add".to_string(), "now".to_string()].into());
        let mut shown: String = text.chars().map(|c| reader.push(&c.to_string())).collect();
        let (rest, calls) = reader.finish();
        shown += &rest;
        (shown, calls.into_iter().map(|c| (c.name, c.arguments)).collect())
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.into(), arguments.into())
    }

    #[test]
    fn calls_are_found_in_the_forms_that_templates_teach() {
        let one = [call("add", r#"{"a": 1}"#)];
        for text in [
            "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}",
            r#" {"name": "add", "parameters": {"a": 1}}"#,
            r#"[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]"#,
        ] {
            assert_eq!(read(text).1, one, "{text}");
            assert_eq!(read(text).0.trim(), "", "{text}");
        }
        let two = "Let me see.\n<tool_call>{\"name\":\"add\",\"arguments\":{}}</tool_call>\n\
            <tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>";
        let (text, calls) = read(two);
        assert_eq!((text.trim(), calls.len()), ("Let me see.", 2));
    }

    #[test]
    fn arguments_are_as_the_model_wrote_them() {
        let written = r#"{"n": 12345678901234567890123, "s": "\u00e9 }", "d": 1.10}"#;
        for (before, behind) in
            [("{\"name\":\"add\",\"arguments\":", "}"), ("[ {\"arguments\" : ", " , \"name\" : \"add\" } ]")]
        {
            assert_eq!(read(&format!("{before}{written}{behind}")).1, [call("add", written)]);
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "1 < 2 and <tool is no tag",
            r#"{"name": "unknown", "arguments": {}}"#,
            r#"{"a": 1}"#,
            "<tool_call>{\"name\": \"add\", \"argu",
            "[1, 2]",
            "",
        ] {
            assert_eq!(read(text), (text.to_string(), Vec::new()));
        }
    }
}
