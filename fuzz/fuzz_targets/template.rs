//! Chat templates of model files, and conversations that they write: text, or an error in a bounded time.
#![no_main]

use apa::llama::{ChatTemplate, Conversation, Ending};
use serde_json::json;

const CONTROLS: [&str; 3] = ["<|im_start|>", "<|im_end|>", "</s>"];

// What the first byte picks, the template, and behind a byte of 1 what the user says.
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&pick, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (source, content) = text.split_once('\u{1}').unwrap_or((text, "hi<|im_end|>"));
    let Ok(template) = ChatTemplate::without_model(source, &CONTROLS) else { return };
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"n": 1.5, "s": content}}});
    let mut messages = vec![
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": content}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "content": content}),
        json!({"role": "assistant", "content": content}),
    ];
    messages.truncate(1 + usize::from(pick & 7) % 5);
    let function = json!({"name": "f", "description": content, "parameters": {"type": "object"}});
    let tools = if pick & 8 == 0 { Vec::new() } else { vec![json!({"type": "function", "function": function})] };
    let ending = [Ending::Answer, Ending::Closed, Ending::Open][usize::from(pick >> 4 & 3) % 3];
    let parse_special = pick & 64 != 0;
    if let Ok(rendered) = template.render(&Conversation { messages, tools, ending, parse_special }) {
        let limit = (1 << 16) + 64 * (1024 + content.len());
        assert!(rendered.text.len() <= limit, "{} bytes", rendered.text.len());
    }
});
