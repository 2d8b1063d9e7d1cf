//! What an API that tells answers has to say: whole, and in a stream. Makes no answer, and no JSON.

use std::sync::Arc;

use axum::response::sse;
use serde_json::Value;

use super::error::ApiError;
use crate::request::{Delta, Parts};
use crate::types::{Generation, TokenLogprob};

/// How answers are told in one of the APIs.
pub(super) trait Dialect: Send + 'static {
    /// Whole answers, one for each choice.
    fn whole(&mut self, answers: &[Whole]) -> Value;
    /// What begins a stream.
    fn head(&mut self) -> Vec<Said>;
    /// More of the choice `at`.
    fn piece(&mut self, at: usize, deltas: Vec<Delta>, logprobs: &[TokenLogprob]) -> Vec<Said>;
    /// The end of the choice `at`.
    fn last(&mut self, at: usize, end: &End) -> Vec<Said>;
    /// The end of a choice that failed; the others go on.
    fn failed(&mut self, at: usize, error: &ApiError) -> Vec<Said>;
    /// What ends a stream.
    fn end(&mut self, done: &[Arc<Generation>]) -> Vec<Said>;
}

/// A whole answer.
pub(super) struct Whole {
    pub(super) parts: Parts,
    pub(super) generation: Arc<Generation>,
    pub(super) logprobs: Vec<TokenLogprob>,
    /// The stop string that ended it.
    pub(super) stop: Option<String>,
}

/// The end of an answer that was streamed.
pub(super) struct End {
    pub(super) generation: Arc<Generation>,
    /// It broke off in the arguments of its last call.
    pub(super) broken_off: bool,
    /// The stop string that ended it.
    pub(super) stop: Option<String>,
}

/// One server-sent event.
pub(super) struct Said {
    pub(super) event: Option<&'static str>,
    pub(super) data: String,
}

impl Said {
    pub(super) fn data(data: &Value) -> Self {
        Self { event: None, data: data.to_string() }
    }
}

impl From<Said> for sse::Event {
    fn from(said: Said) -> Self {
        let event = sse::Event::default().data(said.data);
        match said.event {
            Some(name) => event.event(name),
            None => event,
        }
    }
}
