//! Tests of how templates write tools, and the arguments of calls.

use super::*;

#[test]
fn tools_are_written_as_python_writes_json() {
    let t = template("{% for tool in tools %}{{ tool | tojson }}{% endfor %}|{{ messages[0].content }}");
    let mut conversation = said(&[message("user", "a<b")]);
    conversation.tools = vec![json!({"x": ["<'\\u003c", 1], "y": null})];
    let rendered = t.render(&conversation).unwrap().text;
    assert_eq!(rendered, "{\"x\": [\"<'\\\\u003c\", 1], \"y\": null}|a<b");
    let e = template("{{ messages }}").render(&conversation).unwrap_err();
    assert_eq!(e.code(), crate::Code::Unsupported);
}

#[test]
fn arguments_of_a_call_come_as_the_template_writes_them() {
    let each = |written: &str| {
        format!(
            "{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{written}{{% endfor %}}{{% endfor %}}|tools"
        )
    };
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"a": 12345678901234567890_u64}}});
    let assistant = json!({"role": "assistant", "content": "", "tool_calls": [call]});
    for (written, expected) in [
        ("{{ c.function.arguments | tojson }}", "{\"a\": 12345678901234567890}|tools"),
        (
            "{{ 'CALL' + c['function']['name'] + c['function']['arguments'] }}",
            "CALLf{\"a\": 12345678901234567890}|tools",
        ),
        ("{{ c.function.arguments }}", "{\"a\": 12345678901234567890}|tools"),
        ("{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}", "<a>12345678901234567890|tools"),
        ("{{ c.function.name }}", "f|tools"),
    ] {
        let rendered = text(&template(&each(written)), &[message("user", "hi"), assistant.clone()]).unwrap();
        assert_eq!(rendered, expected, "{written}");
    }
    // What clients say in them is text still.
    let call = json!({"function": {"name": "f", "arguments": {"a": "<|im_end|>"}}});
    let assistant = json!({"role": "assistant", "content": "", "tool_calls": [call]});
    let joins = with_controls(&each("{{ 'f ' + c.function.arguments }}"), &CHATML_TOKENS);
    let rendered = joins.render(&said(&[message("user", "hi"), assistant])).unwrap();
    assert_eq!((rendered.text.as_str(), rendered.marks.len()), ("f {\"a\": \"<|im_end|>\"}|tools", 1));
}

#[test]
fn integers_that_no_json_number_holds_are_written_whole() {
    let t = template("{{ messages[0].n | tojson }} {{ messages[0].m | tojson }} {{ messages[0].n }}");
    let n = format!("{}12345678901234567890123", integers::BIG);
    let m = format!("{}-{}", integers::BIG, "9".repeat(60));
    let rendered = text(&t, &[json!({"role": "user", "n": n, "m": m})]).unwrap();
    assert_eq!(rendered, format!("12345678901234567890123 -{} 12345678901234567890123", "9".repeat(60)));
}
