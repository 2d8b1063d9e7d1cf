//! A parsed request for answers, and its conversion with a model's tokenizer. Never reads a body.

use super::Prompt;
use crate::Engine;
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};
use crate::types::{PolicyVersion, Sampling};

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
        let (version, exact_version) = match self.model.as_deref().and_then(asked_version) {
            Some(AskedVersion::Active) => (Some(engine.status().policy_version), false),
            Some(AskedVersion::Number(version)) => (Some(version), true),
            None => (self.each.version, self.each.exact_version),
        };
        let request = |(i, prompt): (usize, Prompt)| {
            let conversation = prompt.conversation();
            let prompt = prompt.tokens(engine).map_err(|e| if one { e } else { e.context(format!("prompt[{i}]")) })?;
            let each = self.each.clone();
            let sampling = self.asked.over(engine.default_sampling(), each.sampling);
            Ok(GenerateRequest { prompt, conversation, version, exact_version, sampling, ..each })
        };
        self.prompts.into_iter().enumerate().map(request).collect()
    }
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
