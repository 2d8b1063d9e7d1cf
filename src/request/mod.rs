//! Reads the JSON bodies that clients send (chat, completion, feedback, preference) into checked values: one mechanism
//! for HTTP and C. Never runs anything.

mod chat;
mod embeddings;
mod fields;
mod learning;
mod messages;
mod tokens;
mod tools;

#[cfg(test)]
mod tests;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Engine;
use crate::error::{Error, Result};
use crate::llama::Conversation;
use crate::types::{ChatMessage, TokenId};

pub use chat::{ParsedRequest, parse_chat, parse_completion, parse_request};
pub use embeddings::{ParsedEmbeddings, parse_embeddings};
pub use learning::{
    ParsedSample, Preference, parse_feedback, parse_forget, parse_preference, parse_review, parse_sample,
};
pub use messages::parse_messages;
pub use tokens::{parse_detokenize, parse_tokenize};

use fields::shown;

/// What to do with a field that this library does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Return an error that names the nearest known field: for callers that are compiled against this library.
    Refuse,
    /// Skip it: OpenAI clients send fields that mean nothing here.
    Ignore,
}

/// The text that the model continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation; the model's chat template turns it into text.
    Chat(Vec<ChatMessage>),
    /// A conversation that may use tools; the chat template gets both.
    Tools {
        /// The messages, with all their members.
        messages: Vec<Value>,
        /// Tools that may be called.
        tools: Vec<Value>,
    },
    /// Plain text.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// What all turns of one conversation share: a hash of its messages up to the first of the user. `None` for what is
    /// no conversation.
    pub(crate) fn conversation(&self) -> Option<u64> {
        let mut hash = Sha256::new();
        let mut add = |role: &str, content: &str| {
            for part in [role, content] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            role == "user"
        };
        match self {
            Prompt::Chat(messages) => drop(messages.iter().any(|m| add(&m.role, &m.content))),
            Prompt::Tools { messages, .. } => drop(messages.iter().any(|m| {
                let role = m.get("role").and_then(Value::as_str).unwrap_or_default();
                add(role, &m.get("content").map(Value::to_string).unwrap_or_default())
            })),
            Prompt::Text(_) | Prompt::Tokens(_) => return None,
        }
        hash.finalize().first_chunk().map(|first| u64::from_le_bytes(*first))
    }

    /// The prompt in tokens of the engine's model.
    pub(crate) fn tokens(self, engine: &Engine) -> Result<Vec<TokenId>> {
        match self {
            Prompt::Chat(messages) => engine.chat_prompt(&messages),
            Prompt::Tools { messages, tools } => {
                engine.conversation_prompt(&Conversation { messages, tools, ..Conversation::default() })
            }
            Prompt::Text(text) => engine.tokenize(&text),
            Prompt::Tokens(tokens) => Ok(tokens),
        }
    }
}

/// Reads a prompt that is not a chat: text or tokens.
fn prompt_of(name: &str, value: Value) -> Result<Prompt> {
    let expected = "expected a string, an array of one string, or an array of tokens";
    let wrong = |shown: String| Error::arg(format!("{name} is {shown}, {expected}"));
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(mut items) => match items.as_mut_slice() {
            [Value::String(text)] => Ok(Prompt::Text(std::mem::take(text))),
            [Value::Number(_), ..] => items
                .iter()
                .map(|item| item.as_u64().and_then(|id| TokenId::try_from(id).ok()).ok_or(item))
                .collect::<Result<Vec<_>, _>>()
                .map(Prompt::Tokens)
                .map_err(|item| Error::arg(format!("{name} has {} among its tokens, {expected}", shown(item)))),
            items => Err(wrong(format!("an array of {} other values", items.len()))),
        },
        other => Err(wrong(shown(&other))),
    }
}
