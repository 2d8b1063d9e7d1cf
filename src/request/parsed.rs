//! A parsed request for answers, and its conversion with a model's tokenizer. Never reads a body.

use super::Prompt;
use crate::Engine;
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};

/// A request for an answer, checked as far as possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRequest {
    /// The prompts: one, or several of a completion, each with its own answers.
    pub prompts: Vec<Prompt>,
    /// Whether the text of an answer begins with its prompt.
    pub echo: bool,
    /// The parameters of each answer, without its prompt.
    pub each: GenerateRequest,
    /// The model the client named.
    pub model: Option<String>,
    /// Number of answers per prompt, each a generation of its own.
    pub n: u32,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the last chunk of a stream carries the token counts.
    pub include_usage: bool,
    /// Names of the tools that the answer may call.
    pub tools: Vec<String>,
}

impl ParsedRequest {
    /// Tokenizes the prompt with the engine's model, and returns the request for one answer.
    ///
    /// # Errors
    /// As [`Engine::conversation_prompt`] and [`Engine::text_prompt`]; `Unsupported` for several prompts or an echo.
    pub fn resolve(self, engine: &Engine) -> Result<GenerateRequest> {
        if self.prompts.len() > 1 || self.echo {
            let what = if self.echo { "echo is" } else { "several prompts are" };
            return Err(Error::unsupported(format!("{what} not supported here")));
        }
        let mut all = self.resolve_all(engine)?;
        all.pop().ok_or_else(|| Error::arg("the request has no prompt"))
    }

    /// The same for each prompt.
    ///
    /// # Errors
    /// As [`ParsedRequest::resolve`], with the index of the prompt.
    pub fn resolve_all(self, engine: &Engine) -> Result<Vec<GenerateRequest>> {
        let one = self.prompts.len() == 1;
        let request = |(i, prompt): (usize, Prompt)| {
            let conversation = prompt.conversation();
            let prompt = prompt.tokens(engine).map_err(|e| if one { e } else { e.context(format!("prompt[{i}]")) })?;
            Ok(GenerateRequest { prompt, conversation, ..self.each.clone() })
        };
        self.prompts.into_iter().enumerate().map(request).collect()
    }
}
