//! Reads the JSON bodies that clients send (chat, completion, feedback, preference) into checked values: one mechanism
//! for HTTP and C. Never runs anything.

mod answer;
mod anthropic;
mod chat;
mod embeddings;
mod fields;
mod format;
mod general;
mod learning;
mod messages;
mod object;
mod parsed;
mod parts;
mod policy;
mod responses;
mod score;
mod tokens;
mod tools;

#[cfg(test)]
mod ending_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Engine;
use crate::error::{Error, Result};
use crate::llama::Conversation;
use crate::types::{TokenId, whole};

pub(crate) use answer::Reader;
pub use anthropic::parse_anthropic;
/// The fields that each parser knows, for errors that name one and the document that describes them.
#[cfg(feature = "daemon")]
pub(crate) mod known {
    pub(crate) use super::anthropic::ANTHROPIC_FIELDS;
    pub(crate) use super::chat::REQUEST_FIELDS;
    #[cfg(test)]
    pub(crate) use super::chat::{CHAT_FIELDS, TEXT_FIELDS};
    pub(crate) use super::embeddings::EMBEDDINGS_FIELDS;
    pub(crate) use super::learning::{FEEDBACK_FIELDS, FORGET_FIELDS, PREFERENCE_FIELDS, REVIEW_FIELDS, SAMPLE_FIELDS};
    #[cfg(test)]
    pub(crate) use super::messages::MEMBERS;
    pub(crate) use super::policy::{ACTIVATE_FIELDS, ADOPT_FIELDS};
    pub(crate) use super::responses::RESPONSES_FIELDS;
    pub(crate) use super::score::{RERANK_FIELDS, SCORE_FIELDS};
    pub(crate) use super::tokens::{DETOKENIZE_FIELDS, TOKENIZE_FIELDS};

    /// All fields that a request may have, whichever it is.
    pub(crate) const ALL: [&[&str]; 15] = [
        REQUEST_FIELDS,
        ANTHROPIC_FIELDS,
        RESPONSES_FIELDS,
        EMBEDDINGS_FIELDS,
        FEEDBACK_FIELDS,
        FORGET_FIELDS,
        PREFERENCE_FIELDS,
        REVIEW_FIELDS,
        SAMPLE_FIELDS,
        ACTIVATE_FIELDS,
        ADOPT_FIELDS,
        RERANK_FIELDS,
        SCORE_FIELDS,
        DETOKENIZE_FIELDS,
        TOKENIZE_FIELDS,
    ];
}

#[cfg(feature = "daemon")]
pub(crate) use chat::{ANSWERS, CHOICES, TEXT_LOGPROBS};
pub use chat::{parse_chat, parse_completion, parse_request};
#[cfg(feature = "daemon")]
pub(crate) use embeddings::EMBEDDINGS;
pub use embeddings::{ParsedEmbeddings, parse_embeddings};
#[cfg(feature = "daemon")]
pub(crate) use general::written;
pub use learning::{
    Forget, ParsedSample, Preference, parse_feedback, parse_forget, parse_preference, parse_review, parse_sample,
};
pub use messages::parse_messages;
pub use parsed::{AskedSampling, AskedVersion, ParsedRequest, WrittenSchema, asked_version};
pub use parts::Reading;
pub(crate) use parts::calls_json;
#[cfg(feature = "daemon")]
pub(crate) use parts::{Delta, Parts, call_id};
pub use policy::{parse_activate, parse_adopt, parse_nothing};
pub use responses::{ParsedResponses, parse_responses};
#[cfg(feature = "daemon")]
pub(crate) use score::SCORED;
pub use score::{ParsedRerank, ParsedScore, PromptAndAnswer, parse_rerank, parse_score};
pub use tokens::{ParsedTokenize, parse_detokenize, parse_tokenize};

use fields::{Fields, shown};

/// What to do with a field that this library does not know in a request for answers. Elsewhere it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Return an error that names the nearest known field: for callers that are compiled against this library.
    Refuse,
    /// Skip it: OpenAI clients send fields that mean nothing here.
    Ignore,
}

/// The prompt of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation, to be rendered with the model's chat template.
    Chat(Conversation),
    /// Plain text.
    Text(String),
    /// Text whose control tokens count, as written by a template of the client's own.
    Special(String),
    /// Tokens.
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// A value that all turns of a conversation share, a hash of its messages up to the first one of the user, and
    /// whether it was answered before. `None` if it is not a conversation.
    pub(crate) fn conversation(&self) -> Option<(u64, bool)> {
        let mut hash = Sha256::new();
        let mut add = |role: &str, content: &str| {
            for part in [role, content] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            role == "user"
        };
        let Prompt::Chat(conversation) = self else { return None };
        let text = |message: &Value, key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut messages = conversation.messages.iter();
        let _ = messages.any(|message| add(&text(message, "role"), &text(message, "content")));
        let answered = messages.any(|message| text(message, "role") == "assistant");
        hash.finalize().first_chunk().map(|first| (u64::from_le_bytes(*first), answered))
    }

    /// The prompt tokenized with the engine's model.
    pub(crate) fn tokens(self, engine: &Engine) -> Result<Vec<TokenId>> {
        match self {
            Prompt::Chat(conversation) => engine.conversation_prompt(&general::written(conversation, engine)),
            Prompt::Text(text) => engine.text_prompt(&text, false),
            Prompt::Special(text) => engine.text_prompt(&text, true),
            Prompt::Tokens(tokens) => Ok(tokens),
        }
    }
}

/// The one prompt of a body, as `messages` or as `prompt`, with `parse_special`. `what` the body is, for errors.
fn one_prompt(fields: &mut Fields, what: &str) -> Result<Prompt> {
    let parse_special = fields.flag("parse_special")?;
    match (fields.take("messages"), fields.take("prompt")) {
        (Some(messages), None) => {
            let messages = messages::messages_of(messages, fields.unknown)?;
            let ending = messages::ending_of(&messages);
            Ok(Prompt::Chat(Conversation { messages, ending, parse_special, ..Conversation::default() }))
        }
        (None, Some(prompt)) => prompt_of("prompt", prompt, parse_special),
        (None, None) => {
            let neither = || Error::arg(format!("the {what} has neither messages nor prompt, expected one of them"));
            Err(fields.mistyped(&["messages", "prompt"]).unwrap_or_else(neither))
        }
        (Some(_), Some(_)) => Err(Error::arg(format!("the {what} has both messages and prompt, expected one of them"))),
    }
}

/// A prompt given as text or tokens.
fn prompt_of(name: &str, value: Value, special: bool) -> Result<Prompt> {
    let expected = "expected a string or an array of tokens";
    match &value {
        Value::Array(items) if items.first().is_some_and(|item| !item.is_number()) => {
            Err(Error::arg(format!("{name} has {} as its first item, {expected}", shown(&items[0]))))
        }
        _ => {
            let one = prompts_of(name, value, special)?.pop();
            one.ok_or_else(|| Error::arg(format!("{name} is empty, {expected}")))
        }
    }
}

/// A prompt or an array of prompts, each a text or an array of tokens; at least one.
fn prompts_of(name: &str, value: Value, special: bool) -> Result<Vec<Prompt>> {
    let text = |text: String| if special { Prompt::Special(text) } else { Prompt::Text(text) };
    let expected = "expected a string, an array of tokens, or an array of either";
    let tokens = |name: &str, items: &[Value]| {
        let token = |item: &Value| {
            let id = whole(item).and_then(|id| TokenId::try_from(id).ok());
            id.ok_or_else(|| {
                Error::arg(format!("{name} has {} among its tokens, expected tokens' numbers", shown(item)))
            })
        };
        items.iter().map(token).collect::<Result<Vec<_>>>().map(Prompt::Tokens)
    };
    match value {
        Value::String(one) => Ok(vec![text(one)]),
        Value::Array(items) if items.is_empty() => Err(Error::arg(format!("{name} is an empty array, {expected}"))),
        Value::Array(items) if items[0].is_number() => Ok(vec![tokens(name, &items)?]),
        Value::Array(items) => {
            let prompt = |(i, item)| match item {
                Value::String(one) => Ok(text(one)),
                Value::Array(items) => tokens(&format!("{name}[{i}]"), &items),
                other => Err(Error::arg(format!("{name}[{i}] is {}, expected a string or tokens", shown(&other)))),
            };
            items.into_iter().enumerate().map(prompt).collect()
        }
        other => Err(Error::arg(format!("{name} is {}, {expected}", shown(&other)))),
    }
}
