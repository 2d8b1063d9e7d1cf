//! From conversations to tokens, by the template that the model carries. Never decodes.

use super::{ChatTemplate, Model};
use crate::error::{Error, Result};
use crate::types::{ChatMessage, TokenId};

/// A conversation as the model's own template writes it, ready for the assistant's answer, in tokens.
///
/// # Errors
/// `Arg` if the template refuses the messages or the text is too long.
pub fn chat_tokens(model: &Model, template: &ChatTemplate, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
    template_tokens(model, &template.render(messages)?)
}

/// What a template has written, in tokens.
///
/// # Errors
/// `Arg` if the text is too long.
pub fn template_tokens(model: &Model, text: &str) -> Result<Vec<TokenId>> {
    let mut tokens = model.tokenize(text, true, true)?;
    // Templates often write the beginning-of-sequence token themselves.
    if let Some(bos) = model.bos()
        && tokens.len() > 1
        && tokens[..2] == [bos, bos]
    {
        tokens.remove(0);
    }
    Ok(tokens)
}

/// The chat template that the model carries.
///
/// # Errors
/// `Unsupported` if it carries none, or one that doesn't parse.
pub fn template_of(model: &Model) -> Result<ChatTemplate> {
    let source = model.chat_template().ok_or_else(|| Error::unsupported("the model carries no chat template"))?;
    let text = |token: Option<TokenId>| token.map(|t| model.text(&[t], true)).unwrap_or_default();
    ChatTemplate::new(source, text(model.bos()), text(model.eos()))
}
