//! Finds calls of tools in an answer's text. Never makes one.

use std::sync::Arc;

use serde_json::Value;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// Mistral's sign, where its token has a text.
const MARK: &str = "[TOOL_CALLS]";

/// A call that the model wants made.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
}

/// Reads an answer as it comes: what is surely no part of a call is shown at once.
pub(super) struct Reader {
    /// Tools that may be called.
    names: Arc<[String]>,
    held: String,
    shown: bool,
}

impl Reader {
    pub(super) fn new(names: Arc<[String]>) -> Self {
        Self { names, held: String::new(), shown: false }
    }

    /// Takes more text and returns what of it may be shown.
    pub(super) fn push(&mut self, text: &str) -> String {
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

    /// The text that is left, and the calls.
    pub(super) fn finish(&mut self) -> (String, Vec<Call>) {
        let held = std::mem::take(&mut self.held);
        match self.calls(&held) {
            Some((rest, calls)) => (rest, calls),
            // What only looked like a call, or broke off, is text.
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
            // The last may lack its end where that is a token without text.
            let (inside, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
            rest.push_str(before.trim_end());
            calls.extend(self.all(inside.trim())?);
            left = behind;
        }
        rest.push_str(left.trim());
        Some((rest, calls))
    }

    /// All calls that a JSON text holds, at least one; `None` if it is anything else.
    fn all(&self, json: &str) -> Option<Vec<Call>> {
        let values = match serde_json::from_str(json).ok()? {
            Value::Array(values) => values,
            value => vec![value],
        };
        let call = |value: &Value| {
            let name = value["name"].as_str().filter(|name| self.names.iter().any(|known| known == name))?;
            let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
            arguments.is_object().then(|| Call { name: name.to_owned(), arguments: arguments.to_string() })
        };
        values.iter().map(call).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown in the end, and the calls, of a text that comes character by character.
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
        let one = [call("add", r#"{"a":1}"#)];
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
