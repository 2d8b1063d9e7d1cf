//! How an answer's text is to be read, and the parts that are read in it. Reads nothing.

use std::sync::Arc;

use serde_json::{Value, json};

/// Begins reasoning.
pub(super) const THINK: &str = "<think>";

/// How the text of an answer is to be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The tools that may be called.
    pub(crate) tools: Arc<[String]>,
    pub(crate) wrapped: Wrapped,
    pub(crate) reasoning: Reasoning,
}

/// Whether what is said stands in an object, as `{"response": ...}`: the form where a template knows no tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wrapped {
    #[default]
    No,
    /// As a string, whose text is what is said.
    Text,
    /// As JSON, which is what is said.
    Json,
}

/// Where reasoning is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// Nowhere.
    #[default]
    No,
    /// In `<think>` and `</think>` at the beginning.
    Marked,
    /// The prompt has begun it.
    Begun,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delta {
    Reasoning(String),
    Text(String),
    /// A call begins.
    Call {
        index: usize,
        name: String,
    },
    /// More JSON text of a call's arguments.
    Arguments {
        index: usize,
        text: String,
    },
}

/// A tool call in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON text.
    pub(crate) arguments: String,
}

/// Id of a call.
pub(crate) fn call_id(generation: &str, index: usize) -> String {
    format!("call-{generation}-{index}")
}

/// Calls in the form of OpenAI's messages, each with an id of its own.
pub(crate) fn calls_json(generation: &str, calls: &[Call]) -> Vec<Value> {
    let call = |(i, Call { name, arguments }): (usize, &Call)| {
        let function = json!({"name": name, "arguments": arguments});
        json!({"id": call_id(generation, i), "type": "function", "function": function})
    };
    calls.iter().enumerate().map(call).collect()
}

/// The parts of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
    /// The answer broke off in the arguments of its last call.
    pub(crate) broken_off: bool,
}

impl Parts {
    pub(crate) fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Reasoning(text) => self.reasoning += &text,
            Delta::Text(text) => self.text += &text,
            Delta::Call { name, .. } => self.calls.push(Call { name, arguments: String::new() }),
            Delta::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments += &text;
                }
            }
        }
    }
}
