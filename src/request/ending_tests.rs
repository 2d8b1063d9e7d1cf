//! Tests of how a chat's prompt ends: where an answer begins, or where a last message goes on.

use super::tests::chat;
use super::*;
use crate::llama::Ending::{self, Answer, Closed, Open};

#[test]
fn a_chat_ends_as_it_is_asked_to() {
    let of = |members: &str| -> Result<(Ending, bool)> {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{members}}}"#);
        match chat(&body)?.prompts.remove(0) {
            Prompt::Chat(conversation) => Ok((conversation.ending, conversation.parse_special)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(of("").unwrap(), (Answer, false));
    assert_eq!(of(r#","add_generation_prompt":false,"parse_special":true"#).unwrap(), (Closed, true));
    assert_eq!(of(r#","continue_final_message":true,"add_generation_prompt":false"#).unwrap().0, Open);
    let both: Error = of(r#","continue_final_message":true,"add_generation_prompt":true"#).unwrap_err();
    assert!(both.message().contains("both true"), "{both}");
}

#[test]
fn a_last_message_of_the_assistant_is_continued_unless_that_is_not_wanted() {
    let said = r#"{"role":"user","content":"hi"},{"role":"assistant","content":"The sea"}"#;
    let ended = |request: Result<ParsedRequest>| -> Result<Ending> {
        match request?.prompts.remove(0) {
            Prompt::Chat(conversation) => Ok(conversation.ending),
            other => panic!("{other:?}"),
        }
    };
    let of = |members: &str| ended(chat(&format!(r#"{{"messages":[{said}]{members}}}"#)));
    for (members, ending) in [
        ("", Open),
        (r#","continue_final_message":true"#, Open),
        (r#","prefill_assistant":true"#, Open),
        (r#","continue_final_message":false"#, Answer),
        (r#","prefill_assistant":false"#, Answer),
        (r#","add_generation_prompt":true"#, Answer),
        (r#","add_generation_prompt":false"#, Closed),
        (r#","prefill_assistant":false,"add_generation_prompt":false"#, Closed),
        (r#","tools":[{"type":"function","function":{"name":"f"}}]"#, Open),
        (r#","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required""#, Answer),
    ] {
        assert_eq!(of(members).unwrap(), ending, "{members}");
    }
    let error = of(r#","continue_final_message":true,"prefill_assistant":false"#).unwrap_err();
    assert_eq!(
        error.message(),
        "continue_final_message is true and prefill_assistant false, expected the same of both"
    );
    // `prefill_assistant` is for messages of the assistant.
    let asked = r#"{"messages":[{"role":"user","content":"hi"}],"prefill_assistant":true}"#;
    assert_eq!(ended(chat(asked)).unwrap(), Answer);
    let call = r#"{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}"#;
    let called = format!(r#"{{"messages":[{{"role":"assistant","content":"I call.","tool_calls":[{call}]}}]}}"#);
    assert_eq!(ended(chat(&called)).unwrap(), Answer);
    // The other APIs: Anthropic's says the same, and a response of OpenAI's is a message of its own.
    let body = format!(r#"{{"messages":[{said}],"max_tokens":1}}"#);
    assert_eq!(ended(parse_anthropic(body.as_bytes(), Unknown::Ignore)).unwrap(), Open);
    let body = format!(r#"{{"input":[{said}]}}"#);
    assert_eq!(ended(parse_responses(body.as_bytes(), Unknown::Ignore).map(|r| r.request)).unwrap(), Answer);
    assert_eq!(parse_messages(format!("[{said}]").as_bytes(), Unknown::Refuse).unwrap().ending, Open);
    let body = format!(r#"{{"messages":[{said}],"completion":" is salt."}}"#);
    match parse_sample(body.as_bytes()).unwrap().prompt {
        Prompt::Chat(conversation) => assert_eq!(conversation.ending, Open),
        other => panic!("{other:?}"),
    }
}
