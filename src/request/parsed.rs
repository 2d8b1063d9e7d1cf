//! A parsed request for answers, and its conversion with a model's tokenizer. Never reads a body.

use std::sync::Arc;

use serde_json::Value;

use super::parts::{Reading, Reasoning, THINK, Wrapped};
use super::{Prompt, general};
use crate::Engine;
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};
use crate::guide;
use crate::llama::Ending;
use crate::types::{Format, PolicyVersion, Sampling, TokenId};

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
    /// The parameters of each of them.
    pub parameters: Vec<WrittenSchema>,
    /// The schema of the answer, if the request has one.
    pub schema: Option<WrittenSchema>,
    /// Whether the answer has to be a call.
    pub demands_call: bool,
    /// Whether reasoning is told apart from the answer.
    pub reasoning: bool,
}

/// A schema as the client wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenSchema {
    /// Where it stands in the request: `tools[0].function.parameters`.
    pub place: String,
    /// The schema.
    pub schema: Value,
}

/// Schemas of ours that a client's stands in, at most: one of several calls, and its arguments.
const INSIDE: usize = 2;

impl WrittenSchema {
    /// Checks it alone: inside the schema of the whole answer an error would name a place that no client wrote.
    fn check(&self) -> Result<()> {
        guide::check(&self.schema, INSIDE).map_err(|e| e.context(&self.place))
    }
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
        self.check_schemas(wrapped)?;
        let tools: Arc<[String]> = std::mem::take(&mut self.tools).into();
        let one = self.prompts.len() == 1;
        let (version, exact_version) =
            match self.model.as_deref().filter(|name| !engine.is_named(name)).and_then(asked_version) {
                Some(AskedVersion::Active) => (Some(engine.status().policy_version), false),
                Some(AskedVersion::Number(version)) => (Some(version), true),
                None => (self.each.version, self.each.exact_version),
            };
        let request = |(i, prompt): (usize, Prompt)| {
            let (conversation, answered) = prompt.conversation().unzip();
            let chat = conversation.is_some();
            let of_it = |e: &Error| matches!(e.code(), crate::Code::Arg | crate::Code::Unsupported);
            let named = |e: Error| if one || !of_it(&e) { e } else { e.context(format!("prompt[{i}]")) };
            let prompt = prompt.tokens(engine).map_err(named)?;
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

    /// Checks the schemas that the answer is held to.
    fn check_schemas(&self, wrapped: Wrapped) -> Result<()> {
        self.schema.iter().try_for_each(WrittenSchema::check)?;
        if !self.demands_call && wrapped == Wrapped::No {
            return Ok(());
        }
        self.parameters.iter().try_for_each(WrittenSchema::check)?;
        match &self.each.sampling.format {
            // Each of them is supported.
            Some(Format::JsonSchema(all)) if guide::check(all, 0).is_err() => {
                Err(Error::arg("tools: their parameters are too complex together, expected fewer or simpler tools"))
            }
            _ => Ok(()),
        }
    }

    /// Holds the answer to the general form of calls, where the model's template knows no tools.
    fn fit_tools(&mut self, engine: &Engine) -> Result<Wrapped> {
        if self.tools.is_empty() || engine.template_knows_tools() {
            return Ok(Wrapped::No);
        }
        let continued =
            self.prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat(chat) if chat.ending == Ending::Open));
        match (self.demands_call, continued) {
            (true, true) => {
                return Err(Error::unsupported(
                    "continue_final_message with a tool_choice that demands a call is not supported: the model's chat \
                     template knows no tools, and their calls have a format of their own",
                ));
            }
            (true, false) => return Ok(Wrapped::Text),
            // What has begun as a text goes on as one, and is no call even if it reads like one: no schema held it.
            (false, true) => {
                self.tools.clear();
                return Ok(Wrapped::No);
            }
            (false, false) => {}
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_that_is_refused_is_named_by_its_place_in_the_request() {
        use crate::request::{Unknown, parse_anthropic, parse_chat, parse_responses};
        let refused = |request: Result<ParsedRequest>, wrapped| {
            request.unwrap().check_schemas(wrapped).unwrap_err().message().to_owned()
        };
        let bad = r#"{"type":"object","properties":{"a":{"not":{"type":"string"}}}}"#;
        let said = "at /properties/a: not is not supported";
        let f = r#"{"type":"function","function":{"name":"f"}}"#;
        let user = r#""messages":[{"role":"user","content":"hi"}]"#;
        let chat = |members: &str| parse_chat(format!("{{{user},{members}}}").as_bytes(), Unknown::Refuse);
        let tools = format!(r#""tools":[{f},{{"type":"function","function":{{"name":"g","parameters":{bad}}}}}]"#);
        let place = "tools[1].function.parameters: ";
        for forced in [chat(&format!(r#"{tools},"tool_choice":"required""#)), chat(&tools)] {
            assert_eq!(refused(forced, Wrapped::Text), format!("{place}{said}"));
        }
        // The model is not held to it.
        assert!(chat(&tools).unwrap().check_schemas(Wrapped::No).is_ok());
        let format = format!(r#""response_format":{{"type":"json_schema","json_schema":{{"schema":{bad}}}}}"#);
        assert_eq!(refused(chat(&format), Wrapped::No), format!("response_format.json_schema.schema: {said}"));
        let messages = |members: &str| parse_anthropic(format!("{{{user},{members}}}").as_bytes(), Unknown::Refuse);
        let tools = format!(r#""tools":[{{"name":"g","input_schema":{bad}}}],"tool_choice":{{"type":"any"}}"#);
        assert_eq!(refused(messages(&tools), Wrapped::No), format!("tools[0].input_schema: {said}"));
        let format = format!(r#"{{"type":"json_schema","schema":{bad}}}"#);
        let config = messages(&format!(r#""output_config":{{"format":{format}}}"#));
        assert_eq!(refused(config, Wrapped::No), format!("output_config.format.schema: {said}"));
        let responses = |members: &str| {
            let body = format!(r#"{{"input":"hi",{members}}}"#);
            parse_responses(body.as_bytes(), Unknown::Refuse).map(|parsed| parsed.request)
        };
        let tool = format!(r#"{{"type":"function","name":"g","parameters":{bad}}}"#);
        let tools = format!(r#""tools":[{tool}],"tool_choice":"required""#);
        assert_eq!(refused(responses(&tools), Wrapped::No), format!("tools[0].parameters: {said}"));
        let text = responses(&format!(r#""text":{{"format":{format}}}"#));
        assert_eq!(refused(text, Wrapped::No), format!("text.format.schema: {said}"));
    }

    #[test]
    fn a_schema_nested_as_deep_as_allowed_is_refused_at_a_place_that_the_client_wrote() {
        let nested = |depth: usize| {
            let items = (0..depth).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
            json!({"type": "object", "properties": {"a": items}})
        };
        let request = |depth: usize| {
            let tool = json!({"type": "function", "function": {"name": "f", "parameters": nested(depth)}});
            let body =
                json!({"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "tool_choice": "required"});
            crate::request::parse_chat(body.to_string().as_bytes(), crate::request::Unknown::Refuse).unwrap()
        };
        let most = (1..80).take_while(|depth| request(*depth).check_schemas(Wrapped::No).is_ok()).count();
        assert!((50..70).contains(&most), "{most}");
        let error = request(most + 1).check_schemas(Wrapped::No).unwrap_err();
        assert!(error.message().starts_with("tools[0].function.parameters: at /properties/a/items/"), "{error}");
    }

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
