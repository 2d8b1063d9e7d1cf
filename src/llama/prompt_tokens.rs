//! Tokenizes prompts that are conversations or text. Never decodes.

use super::{ChatTemplate, Model, chat_tokens, template_of};
use crate::error::Result;
use crate::types::{PromptText, TokenId};

/// Tokenizes prompts. A model without a template is an error only for conversations.
pub struct PromptTokens<'m> {
    model: &'m Model,
    template: Result<ChatTemplate>,
}

impl<'m> PromptTokens<'m> {
    /// Reads the model's chat template, once for all prompts.
    pub fn new(model: &'m Model) -> Self {
        Self { model, template: template_of(model) }
    }

    /// Tokenizes a conversation with the template, and text as it is.
    ///
    /// # Errors
    /// `Unsupported` for a conversation if the model carries no template, or one that doesn't parse; `Arg` if the
    /// template refuses the messages or the text is too long.
    pub fn of(&self, prompt: &PromptText) -> Result<Vec<TokenId>> {
        match prompt {
            PromptText::Chat(messages) => {
                chat_tokens(self.model, self.template.as_ref().map_err(Clone::clone)?, messages)
            }
            PromptText::Text(text) => self.model.tokenize(text, true, false),
        }
    }
}
