//! The chat template that a GGUF carries, rendered in a sandbox: no files, no environment, bounded work and output. Never
//! tokenizes.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use minijinja_contrib::pycompat;

use crate::error::{Error, Result};
use crate::types::ChatMessage;

/// Instructions that one rendering may take. A template is a program of the file's author: it must end.
const FUEL: u64 = 2_000_000;
/// Nesting of macros and includes.
const RECURSION: usize = 64;
/// Bytes that a rendering may produce beyond four times its input.
const OUTPUT_SLACK: usize = 1 << 16;

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
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
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_string())
            .map_err(|e| Error::unsupported(format!("the model's chat template can't be parsed: {e}")))?;
        Ok(ChatTemplate { environment, bos, eos })
    }

    /// Renders a conversation, ready for the assistant's answer.
    ///
    /// # Errors
    /// `Arg` without messages, or with what the template says of them.
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::arg("messages is empty, expected at least one"));
        }
        let refused = |e: minijinja::Error| Error::arg(format!("the model's chat template refused the messages: {e}"));
        let template = self.environment.get_template("chat").map_err(refused)?;
        let input: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let mut output = Bounded { text: Vec::new(), limit: 4 * input + OUTPUT_SLACK };
        let conversation: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        let known = context! {
            messages => conversation,
            add_generation_prompt => true,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        template.render_captured_to(known, &mut output).map_err(refused)?;
        String::from_utf8(output.text).map_err(|_| Error::arg("the model's chat template gave invalid UTF-8"))
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
