//! The chat template that a GGUF carries, rendered in a sandbox: no files, no environment, bounded work and output.
//! Never tokenizes.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior, Value, context};
use minijinja_contrib::pycompat;

use crate::error::{Error, Result};
use crate::types::ChatMessage;

/// Instructions that one rendering may take. A template is a program of the file's author: it must end.
const FUEL: u64 = 2_000_000;
/// Nesting of macros and includes.
const RECURSION: usize = 64;
/// Bytes that a rendering may produce beyond four times its input.
const OUTPUT_SLACK: usize = 1 << 16;

/// Bytes of JSON that a rendering may write on the way: that work takes no instructions.
const JSON_BYTES: u64 = 16 << 20;
/// Under which name a rendering counts them.
const JSON_SPENT: &str = "json_spent";

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    knows_tools: bool,
}

impl ChatTemplate {
    /// Compiles the template. `bos` and `eos` are the texts of the model's own tokens, which templates name.
    ///
    /// # Errors
    /// `Unsupported` if it doesn't parse.
    pub fn new(source: &str, bos: String, eos: String) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::unsupported(e.to_string()))?);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", plain_json);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_string())
            .map_err(|e| Error::unsupported(format!("the model's chat template can't be parsed: {e}")))?;
        Ok(ChatTemplate { environment, bos, eos, knows_tools: source.contains("tools") })
    }

    /// Renders a conversation, ready for the assistant's answer.
    ///
    /// # Errors
    /// `Arg` without messages, or with what the template says of them.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        let input = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let conversation: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        self.write(conversation, None, input)
    }

    /// Renders a conversation that may use tools: messages and tools are JSON as OpenAI has it, but for arguments of
    /// calls, which are objects.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and `Unsupported` if the template knows no tools.
    pub fn render_with_tools(&self, messages: &[serde_json::Value], tools: &[serde_json::Value]) -> Result<String> {
        if !tools.is_empty() && !self.knows_tools {
            return Err(Error::unsupported("the model's chat template knows no tools"));
        }
        let input = messages.iter().chain(tools).map(|value| value.to_string().len()).sum();
        let values = |all: &[serde_json::Value]| all.iter().map(value_of).collect::<Vec<_>>();
        self.write(values(messages), (!tools.is_empty()).then(|| values(tools)), input)
    }

    fn write(&self, conversation: Vec<Value>, tools: Option<Vec<Value>>, input: usize) -> Result<String> {
        if conversation.is_empty() {
            return Err(Error::arg("messages is empty, expected at least one"));
        }
        let refused = |e: minijinja::Error| Error::arg(format!("the model's chat template refused the messages: {e}"));
        let template = self.environment.get_template("chat").map_err(refused)?;
        let mut output = Bounded { text: Vec::new(), limit: 4 * input + OUTPUT_SLACK };
        let known = context! {
            messages => conversation,
            tools => tools,
            add_generation_prompt => true,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        template.render_captured_to(known, &mut output).map_err(refused)?;
        String::from_utf8(output.text).map_err(|_| Error::arg("the model's chat template gave invalid UTF-8"))
    }
}

/// `tojson` as templates expect it: Python's `json.dumps`. The engine's own also escapes what HTML would need.
fn plain_json(state: &mut State, value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let text = minijinja::filters::tojson(value, None, options)?.to_string();
    let spent = state.get_temp(JSON_SPENT).and_then(|v| u64::try_from(v).ok()).unwrap_or(0) + text.len() as u64;
    if spent > JSON_BYTES {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "it writes more JSON than any prompt"));
    }
    state.set_temp(JSON_SPENT, spent.into());
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let escaped = [("u003c", '<'), ("u003e", '>'), ("u0026", '&'), ("u0027", '\'')];
        let known = escaped.iter().find_map(|(code, c)| Some((after.strip_prefix(code)?, *c)));
        rest = match known {
            Some((behind, c)) => {
                plain.push(c);
                behind
            }
            // Another escape, which may be of a backslash: it stays with the character after it.
            None => {
                let length = after.chars().next().map_or(0, char::len_utf8);
                plain.push('\\');
                plain.push_str(&after[..length]);
                &after[length..]
            }
        };
    }
    plain.push_str(rest);
    Ok(Value::from_safe_string(plain))
}

/// JSON as templates see it. What is parsed is nested 128 deep at most.
fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(0.0)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => items.iter().map(value_of).collect::<Vec<_>>().into(),
        serde_json::Value::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), value_of(v)))),
    }
}

struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(std::io::Error::other("its output is longer than any prompt"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(role: &str, content: &str) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into() }
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, "<s>".into(), "</s>".into()).unwrap()
    }

    #[test]
    fn chatml_renders_as_the_model_expects() {
        let t = template(
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>' \
             + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        );
        let text = t.render(&[message("user", " hi ")]).unwrap();
        assert_eq!(text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn tools_are_written_as_python_writes_json() {
        let t = template("{% for tool in tools %}{{ tool | tojson }}{% endfor %}|{{ messages[0].content }}");
        let text = t.render_with_tools(
            &[json!({"role": "user", "content": "a<b"})],
            &[json!({"x": ["<'\\u003c", 1], "y": null})],
        );
        assert_eq!(text.unwrap(), "{\"x\": [\"<'\\\\u003c\", 1], \"y\": null}|a<b");
        let e = template("{{ messages }}").render_with_tools(&[json!({})], &[json!({})]).unwrap_err();
        assert_eq!(e.code(), crate::Code::Unsupported);
    }

    #[test]
    fn a_template_that_throws_says_what_it_said() {
        let e = template("{{ raise_exception('roles must alternate') }}").render(&[message("user", "hi")]).unwrap_err();
        assert!(e.message().contains("roles must alternate"), "{e}");
    }

    #[test]
    fn a_template_that_does_not_end_is_stopped() {
        let endless = template("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
        assert!(endless.render(&[message("user", "hi")]).is_err());
    }

    #[test]
    fn a_template_has_no_files_to_include() {
        assert!(template("{% include '/etc/passwd' %}").render(&[message("user", "hi")]).is_err());
    }

    #[test]
    fn a_template_that_does_not_parse_is_unsupported() {
        let e = ChatTemplate::new("{% for %}", String::new(), String::new()).err().unwrap();
        assert_eq!(e.code(), crate::Code::Unsupported);
    }
}
