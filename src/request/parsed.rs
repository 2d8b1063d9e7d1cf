//! A parsed request for answers, and its conversion with a model's tokenizer. Never reads a body.

use std::sync::Arc;

use serde_json::Value;

use super::parts::{Reading, Reasoning, THINK, Wrapped};
use super::{Prompt, general};
use crate::Engine;
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};
use crate::types::{PolicyVersion, Sampling, TokenId};

/// A request for an answer, checked as far as possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRequest {
    /// The prompts: one, or several of a completion, each with its own answers.
    pub prompts: Vec<Prompt>,
    /// Whether the text of an answer begins with its prompt.
    pub echo: bool,
    /// What it says of sampling; the engine's defaults hold for the rest.
    pub asked: AskedSampling,
    /// The parameters of each answer, without its prompt; sampled as a plain engine would.
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
    /// The JSON schema of a call of each of them.
    pub calls: Vec<Value>,
    /// Whether the answer has to be a call.
    pub demands_call: bool,
    /// Whether reasoning is told apart from the answer.
    pub reasoning: bool,
}

impl ParsedRequest {
    /// Tokenizes the prompt with the engine's model, and returns the request for one answer, and how to read that.
    ///
    /// # Errors
    /// As [`Engine::conversation_prompt`] and [`Engine::text_prompt`]; `Unsupported` for several prompts or an echo.
    pub fn resolve(self, engine: &Engine) -> Result<(GenerateRequest, Reading)> {
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
    pub fn resolve_all(mut self, engine: &Engine) -> Result<Vec<(GenerateRequest, Reading)>> {
        let wrapped = self.fit_tools(engine)?;
        let tools: Arc<[String]> = std::mem::take(&mut self.tools).into();
        let one = self.prompts.len() == 1;
        let (version, exact_version) = match self.model.as_deref().and_then(asked_version) {
            Some(AskedVersion::Active) => (Some(engine.status().policy_version), false),
            Some(AskedVersion::Number(version)) => (Some(version), true),
            None => (self.each.version, self.each.exact_version),
        };
        let request = |(i, prompt): (usize, Prompt)| {
            let (conversation, answered) = prompt.conversation().unzip();
            let chat = conversation.is_some();
            let prompt = prompt.tokens(engine).map_err(|e| if one { e } else { e.context(format!("prompt[{i}]")) })?;
            // An answer that is held to a format is all of that, whatever its prompt has begun.
            let free = self.each.sampling.format.is_none();
            let reasoning = match chat && self.reasoning {
                true if free && begins_reasoning(engine, &prompt) => Reasoning::Begun,
                true => Reasoning::Marked,
                false => Reasoning::No,
            };
            let each = self.each.clone();
            let sampling = self.asked.over(engine.default_sampling(), each.sampling);
            let answered = answered.unwrap_or_default();
            let request = GenerateRequest { prompt, conversation, answered, version, exact_version, sampling, ..each };
            Ok((request, Reading { tools: tools.clone(), wrapped, reasoning }))
        };
        self.prompts.into_iter().enumerate().map(request).collect()
    }

    /// Holds the answer to the general form of calls, where the model's template knows no tools.
    fn fit_tools(&mut self, engine: &Engine) -> Result<Wrapped> {
        if self.tools.is_empty() || engine.template_knows_tools() {
            return Ok(Wrapped::No);
        }
        if self.demands_call {
            return Ok(Wrapped::Text);
        }
        let (format, wrapped) = general::format(&self.calls, self.each.sampling.format.as_ref())?;
        self.each.sampling.format = Some(format);
        Ok(wrapped)
    }
}

/// Tokens at the end of a prompt among which the beginning of reasoning is looked for.
const LAST: usize = 8;

/// Whether the prompt, as templates of reasoning models write it, ends where the reasoning begins.
fn begins_reasoning(engine: &Engine, prompt: &[TokenId]) -> bool {
    let end = &prompt[prompt.len().saturating_sub(LAST)..];
    engine.detokenize(end).trim_end().ends_with(THINK)
}

/// What a request says of sampling, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AskedSampling {
    /// See [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`Sampling::repeat_penalty`].
    pub repeat_penalty: Option<f32>,
    /// See [`Sampling::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`Sampling::presence_penalty`].
    pub presence_penalty: Option<f32>,
}

impl AskedSampling {
    /// The sampling of a request: its own values, `defaults` for those that it lacks, and the rest of `own`.
    pub fn over(&self, defaults: &Sampling, own: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            ..own
        }
    }
}

/// The version that a model's name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedVersion {
    /// `name@active`: the one that serves, whatever is on trial.
    Active,
    /// `name@3`: that one and no other.
    Number(PolicyVersion),
}

/// The version in the name of a model, after its last `@`; none in a name that ends otherwise, which is the model as it
/// serves.
pub fn asked_version(model: &str) -> Option<AskedVersion> {
    match model.rsplit_once('@')?.1 {
        "active" => Some(AskedVersion::Active),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            number.parse().ok().map(|number| AskedVersion::Number(PolicyVersion(number)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_may_end_with_a_version() {
        let number = |n| Some(AskedVersion::Number(PolicyVersion(n)));
        assert_eq!(asked_version("smollm2@3"), number(3));
        assert_eq!(asked_version("me@home@0"), number(0));
        assert_eq!(asked_version("smollm2@active"), Some(AskedVersion::Active));
        for plain in ["smollm2", "me@home", "smollm2@", "smollm2@-1", "smollm2@3b", "smollm2@99999999999999999999"] {
            assert_eq!(asked_version(plain), None, "{plain}");
        }
    }
}
