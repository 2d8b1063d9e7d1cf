//! Tests of what is read from an answer.

use std::sync::Arc;

use super::super::parts::Call;
use super::*;

/// The shown text and the calls of a text that arrives character by character.
fn read(text: &str) -> (String, Vec<(String, String)>) {
    let parts = parts(Reading { tools: tools(), ..Reading::default() }, text);
    (parts.text, parts.calls.into_iter().map(|c| (c.name, c.arguments)).collect())
}

fn tools() -> Arc<[String]> {
    ["add".to_string(), "now".to_string()].into()
}

/// The same parts come of a text whole and character by character.
fn parts(reading: Reading, text: &str) -> Parts {
    let whole = Reader::parts(reading.clone(), text);
    let mut reader = Reader::new(reading);
    let mut parts = Parts::default();
    let pieces: Vec<Delta> = text.chars().flat_map(|c| reader.push(&c.to_string())).collect();
    pieces.into_iter().for_each(|delta| parts.add(delta));
    reader.finish().into_iter().for_each(|delta| parts.add(delta));
    parts.broken_off = reader.broke_off();
    assert_eq!(parts, whole, "{text}");
    parts
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

#[test]
fn a_call_is_told_before_its_arguments_end_and_these_as_they_come() {
    let mut reader = Reader::new(Reading { tools: tools(), ..Reading::default() });
    assert_eq!(reader.push("Well. <tool_call>{\"name\": \"add\", \"argu"), [Delta::Text("Well.".into())]);
    let arguments = |text: &str| Delta::Arguments { index: 0, text: text.into() };
    let call = Delta::Call { index: 0, name: "add".into() };
    assert_eq!(reader.push("ments\": {\"a\": "), [call, arguments("{\"a\": ")]);
    assert_eq!(reader.push("\"}\\\"\"}}</tool"), [arguments("\"}\\\"\"}")]);
    assert_eq!(reader.push("_call>\n"), []);
    assert_eq!((reader.finish(), reader.broke_off()), (Vec::new(), false));
}

#[test]
fn a_call_that_breaks_off_in_its_arguments_says_so() {
    let parts = parts(Reading { tools: tools(), ..Reading::default() }, r#"{"name": "add", "arguments": {"a": [1"#);
    assert!(parts.broken_off && parts.calls == [Call { name: "add".into(), arguments: r#"{"a": [1"#.into() }]);
}

#[test]
fn what_is_said_in_an_object_is_its_text_as_it_comes() {
    let said = |wrapped, text: &str| parts(Reading { tools: tools(), wrapped, ..Reading::default() }, text);
    assert_eq!(said(Wrapped::Text, "{\"response\": \"a\\n\\\"b\\\" }\"}").text, "a\n\"b\" }");
    assert_eq!(said(Wrapped::Text, "{ \"response\" : \"cut o").text, "cut o");
    assert_eq!(said(Wrapped::Json, "{\"response\": {\"a\": [1]}}").text, "{\"a\": [1]}");
    assert_eq!(said(Wrapped::Json, "{\"response\": 12}").text, "12");
    assert_eq!(said(Wrapped::No, "{\"response\": \"a\"}").text, "{\"response\": \"a\"}");
    assert_eq!(said(Wrapped::Text, r#"{"name": "now", "arguments": {}}"#).calls.len(), 1);
    let mut reader = Reader::new(Reading { wrapped: Wrapped::Text, ..Reading::default() });
    assert_eq!(reader.push("{\"response\": \"On"), [Delta::Text("On".into())]);
    assert_eq!(reader.push("ce"), [Delta::Text("ce".into())]);
}

#[test]
fn reasoning_is_told_apart_from_what_is_said() {
    let of = |reasoning, text: &str| {
        let parts = parts(Reading { reasoning, ..Reading::default() }, text);
        (parts.reasoning, parts.text)
    };
    let split = |reasoning: &str, text: &str| (reasoning.to_owned(), text.to_owned());
    assert_eq!(of(Reasoning::Marked, "<think>\nWhy?\n\nSo.\n</think>\n\nYes. "), split("Why?\n\nSo.", "Yes. "));
    assert_eq!(of(Reasoning::Begun, "Why? <b </think>Yes."), split("Why? <b", "Yes."));
    assert_eq!(of(Reasoning::Begun, "\nWhy? </thi"), split("Why? </thi", ""));
    assert_eq!(of(Reasoning::Marked, "<think></think>Yes"), split("", "Yes"));
    for plain in ["<thin", "<thinking>", "A <think>b</think>", "", " "] {
        assert_eq!(of(Reasoning::Marked, plain), split("", plain));
    }
    assert_eq!(of(Reasoning::No, "<think>a</think>b"), split("", "<think>a</think>b"));
    let called = "<think>add</think>\n<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    let parts = parts(Reading { tools: tools(), reasoning: Reasoning::Marked, ..Reading::default() }, called);
    assert!(parts.reasoning == "add" && parts.text.is_empty() && parts.calls.len() == 1, "{parts:?}");
}
