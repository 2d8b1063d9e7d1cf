//! Converts conversations to tokens with the model's chat template. Never decodes.

use std::time::Duration;

use crossbeam_channel::bounded;

use super::Model;
use super::template::{ChatTemplate, Rendered};
use crate::error::{Error, Result};
use crate::types::{ChatMessage, TokenId};

/// Time limit of a new template's first conversations, which take microseconds.
const TRIAL: Duration = Duration::from_secs(10);

/// Renders messages with the model's own template, ready for the assistant's answer, as tokens. Control tokens in the
/// messages are treated as plain text; only the template's own count.
///
/// # Errors
/// `Arg` if the template refuses the messages or the text is too long.
pub fn chat_tokens(model: &Model, template: &ChatTemplate, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
    rendered_tokens(model, &template.render(&messages.into())?)
}

/// Tokenizes what a template rendered.
///
/// # Errors
/// `Arg` if the text is too long.
pub fn rendered_tokens(model: &Model, rendered: &Rendered) -> Result<Vec<TokenId>> {
    let mut tokens = model.tokenize_rendered(rendered)?;
    // Templates often write the beginning-of-sequence token themselves.
    if let Some(bos) = model.bos()
        && tokens.len() > 1
        && tokens[..2] == [bos, bos]
    {
        tokens.remove(0);
    }
    Ok(tokens)
}

/// The token that the template writes after an assistant's answer to end the turn, if any.
fn written_turn_end(model: &Model, template: &ChatTemplate) -> Option<TokenId> {
    let tokens = model.tokenize(&template.behind_an_answer()?, false, true).ok()?;
    tokens.into_iter().find(|token| model.ends(*token))
}

impl Model {
    /// The token that ends an assistant's turn: the one the template writes after its answers, or else the one that the
    /// vocabulary names.
    pub fn turn_end(&self) -> Option<TokenId> {
        let written = || template_of(self).ok().and_then(|template| written_turn_end(self, &template));
        *self.turn_end.get_or_init(|| written().or_else(|| self.named_turn_end()))
    }
}

/// The model's chat template. If it can't render the simplest conversation, [`ChatTemplate::fault`] says why.
///
/// # Errors
/// `Unsupported` if it carries none, or one that doesn't parse; `Model` for one that doesn't come to an end, whose
/// thread goes on and takes memory: such a model must not be opened.
pub fn template_of(model: &Model) -> Result<ChatTemplate> {
    let source = model.chat_template().ok_or_else(|| Error::unsupported("the model carries no chat template"))?;
    let text = |token: Option<TokenId>| token.map(|t| model.text(&[t], true)).unwrap_or_default();
    let template = ChatTemplate::new(source, text(model.bos()), text(model.eos()), model.specials())?;
    tried(template, TRIAL)
}

/// Tries a template on short conversations, apart: not every loop in one is counted by its engine, and no thread can be
/// ended from outside.
fn tried(mut template: ChatTemplate, limit: Duration) -> Result<ChatTemplate> {
    let (done, trial) = bounded(1);
    let body = move || {
        let simplest = [ChatMessage { role: "user".into(), content: "Hi".into() }];
        template.fault = template.render(&simplest[..].into()).err();
        template.behind_an_answer();
        drop(done.send(template));
    };
    let thread = std::thread::Builder::new().name("apa-template".into()).spawn(body);
    thread.map_err(|e| Error::nomem(format!("can't start a thread to try the chat template: {e}")))?;
    trial.recv_timeout(limit).map_err(|_| {
        let limit = limit.as_secs();
        Error::model(format!("the model's chat template takes more than {limit} seconds for one message"))
    })
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
