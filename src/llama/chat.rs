//! From conversations to tokens, by the template that the model carries. Never decodes.

use super::Model;
use super::template::{ChatTemplate, Rendered};
use crate::error::{Error, Result};
use crate::types::{ChatMessage, TokenId};

/// Messages as the model's own template writes them, ready for the assistant's answer, in tokens. What they say names
/// no control token: only the template does.
///
/// # Errors
/// `Arg` if the template refuses the messages or the text is too long.
pub fn chat_tokens(model: &Model, template: &ChatTemplate, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
    rendered_tokens(model, &template.render(&messages.into())?)
}

/// What a template has written, in tokens.
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

/// What the template writes behind the assistant's answers to end their turn, if anything.
fn written_turn_end(model: &Model, template: &ChatTemplate) -> Option<TokenId> {
    let tokens = model.tokenize(&template.behind_an_answer()?, false, true).ok()?;
    tokens.into_iter().find(|token| model.ends(*token))
}

impl Model {
    /// The token that ends a turn of the assistant: what the model's template writes behind its answers, or what the
    /// vocabulary names for it where the template writes none or there is no template.
    pub fn turn_end(&self) -> Option<TokenId> {
        let written = || template_of(self).ok().and_then(|template| written_turn_end(self, &template));
        *self.turn_end.get_or_init(|| written().or_else(|| self.named_turn_end()))
    }
}

/// The chat template that the model carries. If it can't write the simplest conversation, the log says why.
///
/// # Errors
/// `Unsupported` if it carries none, or one that doesn't parse.
pub fn template_of(model: &Model) -> Result<ChatTemplate> {
    let source = model.chat_template().ok_or_else(|| Error::unsupported("the model carries no chat template"))?;
    let text = |token: Option<TokenId>| token.map(|t| model.text(&[t], true)).unwrap_or_default();
    let template = ChatTemplate::new(source, text(model.bos()), text(model.eos()), model.specials())?;
    let simplest = [ChatMessage { role: "user".into(), content: "Hi".into() }];
    if let Err(error) = template.render(&simplest[..].into()) {
        tracing::warn!(%error, "the chat template fails on one message of a user: chats will be refused");
    }
    Ok(template)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
