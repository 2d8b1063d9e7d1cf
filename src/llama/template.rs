//! Renders the GGUF's chat template in a sandbox: no files, no environment, bounded work and output. Never tokenizes.

use std::collections::HashSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::{Value as Json, json};

use super::control::{Marker, Specials};
use super::python::STAND_INS;
use super::stack::with_stack;
use super::{integers, jinja, python};
use crate::error::{Error, Result};
use crate::types::ChatMessage;

/// Instructions per rendering. A template is a program by the file's author, and must end.
const FUEL: u64 = 2_000_000;
/// Nesting of macros and includes.
const RECURSION: usize = 64;
/// Bytes that a rendering may produce beyond four times its input.
const OUTPUT_SLACK: usize = 1 << 16;
/// Longest template, in bytes. Current models have at most some ten thousand.
const SOURCE_BYTES: usize = 1 << 18;
/// Stack per byte of source: a chain with two bytes per link (`x|e|e`) is compiled and dropped recursively.
const STACK_A_BYTE: usize = 1 << 10;
/// Stack for an empty source.
const STACK_AT_LEAST: usize = 4 << 20;
/// Stack of a rendering: values nested as deep as the instructions allow are dropped recursively.
const STACK_TO_RENDER: usize = 256 << 20;

/// Longest part of an engine's message that is passed on, in characters.
const MESSAGE_CHARS: usize = 300;

/// How a rendered conversation ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Where the assistant's answer begins.
    #[default]
    Answer,
    /// After the last message, closed by the template.
    Closed,
    /// Inside the last message, which is to be continued.
    Open,
}

/// The input of a template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Messages in OpenAI's form, except that content is text and the arguments of calls are objects.
    pub messages: Vec<Json>,
    /// Available tools, in OpenAI's form.
    pub tools: Vec<Json>,
    /// How it ends.
    pub ending: Ending,
    /// Whether control tokens in the texts of messages and tools count as such.
    pub parse_special: bool,
}

impl From<&[ChatMessage]> for Conversation {
    fn from(messages: &[ChatMessage]) -> Self {
        let message = |m: &ChatMessage| json!({"role": m.role, "content": m.content});
        Conversation { messages: messages.iter().map(message).collect(), ..Conversation::default() }
    }
}

/// The output of a template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Offsets of characters from the input that could begin a control token, and must not. [bytes, ascending]
    pub(super) marks: Vec<usize>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    knows_tools: bool,
    /// It writes a call's arguments as they come, so that they have to come as JSON rather than as an object.
    arguments_are_text: bool,
    /// The string literals of its source, which include roles of its own.
    literals: HashSet<String>,
    marker: Marker,
    /// Why it can't render the simplest conversation, one message of a user, once that was tried.
    pub(super) fault: Option<Error>,
}

impl ChatTemplate {
    /// Why it can't render the simplest conversation, one message of a user; `None` if it can.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// Compiles a template apart from a model: only it may write the `controls`, and it knows no token that begins or
    /// ends a text.
    ///
    /// # Errors
    /// `Unsupported` if it doesn't parse or is longer than any.
    pub fn without_model(source: &str, controls: &[&str]) -> Result<ChatTemplate> {
        ChatTemplate::new(source, String::new(), String::new(), &Specials::of_controls(controls))
    }

    /// Compiles the template. `bos` and `eos` are the texts of the model's tokens, which templates use.
    ///
    /// # Errors
    /// `Unsupported` if it doesn't parse or is too long.
    pub(super) fn new(source: &str, bos: String, eos: String, specials: &Specials) -> Result<ChatTemplate> {
        if source.len() > SOURCE_BYTES {
            let bytes = source.len();
            return Err(Error::unsupported(format!(
                "the model's chat template has {bytes} bytes, expected at most {SOURCE_BYTES}"
            )));
        }
        let jinja::Source { text, literals } = jinja::read(source)?;
        let environment = with_stack(STACK_AT_LEAST + STACK_A_BYTE * text.len(), || compile(text))??;
        let mut template = ChatTemplate {
            fault: None,
            environment,
            bos,
            eos,
            knows_tools: source.contains("tools"),
            arguments_are_text: false,
            marker: Marker::new(specials, &literals),
            literals: literals.into_iter().collect(),
            source: source.to_owned(),
        };
        if source.contains("arguments") && !template.writes_arguments() {
            template.arguments_are_text = true;
            template.arguments_are_text = template.writes_arguments();
        }
        Ok(template)
    }

    /// Whether it writes a call's arguments, and not as Python would show an object.
    fn writes_arguments(&self) -> bool {
        let function = json!({"name": "f", "arguments": {"probe": "x"}});
        let call = json!({"id": "abcdefg12", "type": "function", "function": function});
        let messages = vec![
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": "Hi", "tool_call_id": "abcdefg12"}),
        ];
        let written = self.render(&Conversation { messages, ending: Ending::Closed, ..Conversation::default() });
        written.is_ok_and(|written| written.text.contains("probe") && !written.text.contains("'probe'"))
    }

    /// Whether it writes tools and what they gave.
    pub fn knows_tools(&self) -> bool {
        self.knows_tools
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// `Arg` without messages, for a role that neither OpenAI nor the template knows, or with the template's own
    /// complaint; `Unsupported` if the template has no tools, or ends a message that should continue.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered> {
        let Conversation { messages, tools, ending, parse_special } = conversation;
        if messages.is_empty() {
            return Err(Error::arg("messages is empty, expected at least one"));
        }
        if !tools.is_empty() && !self.knows_tools {
            return Err(Error::unsupported("the model's chat template knows no tools"));
        }
        let messages = messages.iter().enumerate().map(|(i, m)| self.message(i, m)).collect::<Result<Vec<_>>>()?;
        let stand_ins = StandIns::new(&self.source, &self.marker, messages.iter().chain(tools));
        let text = self.write(messages, tools, *ending, *parse_special, &stand_ins)?;
        stand_ins.take_out(match ending {
            Ending::Open => text.split_once(stand_ins.end).ok_or_else(open)?.0,
            Ending::Answer | Ending::Closed => &text,
        })
    }

    /// What the template writes right after an assistant's answer, to end its turn.
    pub(super) fn behind_an_answer(&self) -> Option<String> {
        let messages = vec![json!({"role": "user", "content": "Hi"}), json!({"role": "assistant", "content": "Hi"})];
        let stand_ins = StandIns::new(&self.source, &self.marker, messages.iter());
        let text = self.write(messages, &[], Ending::Open, false, &stand_ins).ok()?;
        stand_ins.take_out(text.split_once(stand_ins.end)?.1).ok().map(|rendered| rendered.text)
    }

    /// A message in the form that templates expect.
    fn message(&self, place: usize, message: &Json) -> Result<Json> {
        let Some(role) = message["role"].as_str() else {
            return Err(Error::arg(format!("messages[{place}]: role is missing, expected a string")));
        };
        let mut message = message.clone();
        if self.arguments_are_text {
            let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten();
            for arguments in calls.filter_map(|call| call.pointer_mut("/function/arguments")) {
                if let Some(text) = python::dumped(arguments).filter(|_| arguments.is_object()) {
                    *arguments = text.into();
                }
            }
        }
        let role = match role {
            "system" | "user" | "assistant" | "tool" => return Ok(message),
            "developer" if !self.literals.contains(role) => "system",
            "function" if !self.literals.contains(role) => "tool",
            role if self.literals.contains(role) && is_name(role) => return Ok(message),
            role => {
                let role: String = role.chars().take(32).collect();
                return Err(Error::arg(format!(
                    "messages[{place}]: role is {role:?}, which the model's chat template does not know, expected \
                     system, developer, user, assistant or tool"
                )));
            }
        };
        message["role"] = role.into();
        Ok(message)
    }

    /// Renders; with [`Ending::Open`] the end of the last message's content is marked.
    fn write(
        &self,
        mut messages: Vec<Json>,
        tools: &[Json],
        ending: Ending,
        parse_special: bool,
        stand_ins: &StandIns,
    ) -> Result<String> {
        let input: usize = messages.iter().chain(tools).map(|value| value.to_string().len()).sum();
        if ending == Ending::Open {
            match messages.last_mut().and_then(|m| m.get_mut("content")) {
                Some(Json::String(content)) => content.push(stand_ins.end),
                _ => return Err(open()),
            }
        }
        let mark = |text: &str| match parse_special || self.marker.is_idle() {
            true => text.to_owned(),
            false => self.marker.mark(text, |c| stand_ins.of(c)),
        };
        let values = |all: &[Json]| all.iter().map(|one| python::value(one, &mark)).collect::<Vec<_>>();
        let known = context! {
            messages => values(&messages),
            tools => (!tools.is_empty()).then(|| values(tools)),
            add_generation_prompt => ending == Ending::Answer,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let refused =
            |e: minijinja::Error| Error::arg(format!("the model's chat template refused the messages: {}", shown(&e)));
        let mut output = Bounded { text: Vec::new(), limit: 4 * input + OUTPUT_SLACK };
        // What the template made is dropped there too.
        with_stack(STACK_TO_RENDER, || {
            let template = self.environment.get_template("chat")?;
            template.render_captured_to(known, &mut output).map(drop)
        })?
        .map_err(refused)?;
        String::from_utf8(output.text).map_err(|_| Error::arg("the model's chat template gave invalid UTF-8"))
    }
}

fn compile(source: String) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| Error::unsupported(e.to_string()))?);
    python::install(&mut environment);
    // They write deeply nested values in a time that instruction counts don't bound, and only for people.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment
        .add_template_owned("chat", source)
        .map_err(|e| Error::unsupported(format!("the model's chat template can't be parsed: {}", shown(&e))))?;
    Ok(environment)
}

/// The engine's message in one line of bounded length, since it may quote the template.
fn shown(error: &minijinja::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(MESSAGE_CHARS).collect()
}

fn open() -> Error {
    Error::unsupported(
        "the model's chat template does not let the last message go on, expected continue_final_message to be false",
    )
}

/// Whether it could be the name of a role.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Characters that occur in neither the template nor the messages, and the characters they replace meanwhile.
struct StandIns {
    of: Vec<(char, char)>,
    /// Marks the end of the last message's content.
    end: char,
}

impl StandIns {
    fn new<'a>(source: &str, marker: &Marker, given: impl Iterator<Item = &'a Json>) -> StandIns {
        let mut taken = HashSet::new();
        let mut note = |text: &str| taken.extend(text.chars().filter(|c| STAND_INS.contains(c)));
        note(source);
        given.for_each(|value| texts(value, &mut note));
        let mut free = STAND_INS.filter(|c| !taken.contains(c));
        let end = free.next().unwrap_or(*STAND_INS.start());
        let of = marker.characters().zip(free).collect();
        StandIns { of, end }
    }

    fn of(&self, c: char) -> char {
        self.of.iter().find_map(|(of, stand_in)| (*of == c).then_some(*stand_in)).unwrap_or(c)
    }

    /// Replaces stand-ins by their originals, and returns the positions.
    fn take_out(&self, text: &str) -> Result<Rendered> {
        let mut rendered = Rendered { text: String::with_capacity(text.len()), marks: Vec::new() };
        for c in text.chars() {
            if c == self.end || c == integers::BIG {
                continue;
            }
            match self.of.iter().find(|(_, stand_in)| *stand_in == c) {
                Some((of, _)) => {
                    rendered.marks.push(rendered.text.len());
                    rendered.text.push(*of);
                }
                None => rendered.text.push(c),
            }
        }
        Ok(rendered)
    }
}

/// Passes every text of a value, keys included, to `look`.
fn texts(value: &Json, look: &mut impl FnMut(&str)) {
    match value {
        Json::String(text) => look(text),
        Json::Array(items) => items.iter().for_each(|item| texts(item, look)),
        Json::Object(map) => map.iter().for_each(|(key, value)| {
            look(key);
            texts(value, look);
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
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
#[path = "template_tests.rs"]
mod tests;
