//! Reads requests for answers: the body of a chat or of a completion. Never samples.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fields::{Fields, negative, quoted, shown};
use super::messages::{ending_of, messages_of};
use super::parsed::{AskedSampling, ParsedRequest, WrittenSchema};
use super::{Prompt, Unknown, prompts_of, tools};
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};
use crate::llama::{Conversation, Ending};
use crate::types::{Format, Sampling, TokenId, whole};

/// Longest stop string, in bytes.
const STOP_BYTES: usize = 256;
/// Most answers per prompt.
pub(crate) const CHOICES: u32 = 8;
/// Most answers to all prompts of a request, if it has several.
pub(crate) const ANSWERS: usize = 32;
/// Most alternatives beside each token of a completion, as in OpenAI's API.
pub(crate) const TEXT_LOGPROBS: u32 = 5;

/// Known fields of either kind of request, of which errors suggest the nearest.
pub(crate) const REQUEST_FIELDS: &[&str] = &[
    "messages",
    "prompt",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "response_format",
    "grammar",
    "logprobs",
    "top_logprobs",
    "ignore_eos",
    "reasoning_format",
    "seed",
    "stop",
    "user",
    "n",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "parse_special",
    "add_generation_prompt",
    "continue_final_message",
    "prefill_assistant",
    "echo",
];

/// Those of chats alone.
#[cfg(all(test, feature = "daemon"))]
pub(crate) const CHAT_FIELDS: &[&str] = &[
    "messages",
    "top_logprobs",
    "reasoning_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "add_generation_prompt",
    "continue_final_message",
    "prefill_assistant",
];

/// Those of completions alone.
#[cfg(all(test, feature = "daemon"))]
pub(crate) const TEXT_FIELDS: &[&str] = &["prompt", "echo"];

/// Fields of the OpenAI API that are not implemented and would change the answer: refused unless they have no effect.
const UNSUPPORTED_FIELDS: &[&str] = &["functions", "suffix", "best_of", "modalities", "audio"];

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// `Arg` names the field and what was expected; `Unsupported` names a field that would change the answer and is not
/// implemented.
pub fn parse_chat(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    chat_of(Fields::parse(body, unknown)?)
}

/// The chat that an object asks for; other APIs put theirs into this form.
pub(super) fn chat_of(mut fields: Fields) -> Result<ParsedRequest> {
    let messages = fields.required("messages")?;
    let tools = tools::take(&mut fields)?;
    let format = fields.name("response_format");
    let (continued, begun) = (fields.continued()?, fields.choice("add_generation_prompt")?);
    let parse_special = fields.flag("parse_special")?;
    let messages = messages_of(messages, fields.unknown)?;
    let ending = match (continued, begun) {
        (Some(true), Some(true)) => {
            return Err(Error::arg("continue_final_message and add_generation_prompt are both true, expected one"));
        }
        (Some(true), _) => Ending::Open,
        (_, Some(false)) => Ending::Closed,
        // A call that is demanded is an answer of its own.
        (None, None) if !tools.forced => ending_of(&messages),
        _ => Ending::Answer,
    };
    let conversation = Conversation { messages, tools: tools.given, ending, parse_special };
    let mut request = fields.into_request(vec![Prompt::Chat(conversation)])?;
    (request.tools, request.calls, request.demands_call) = (tools.names, tools.calls, tools.forced);
    request.parameters = tools.parameters;
    if request.demands_call {
        if request.each.sampling.format.is_some() {
            return Err(Error::arg(format!("tool_choice demands a call, and {format} or grammar another answer")));
        }
        request.each.sampling.format = Some(Format::JsonSchema(json!({"anyOf": request.calls})));
    }
    Ok(request)
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_completion(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let mut fields = Fields::parse(body, unknown)?;
    let prompt = fields.required("prompt")?;
    let special = fields.flag("parse_special")?;
    let prompts = prompts_of("prompt", prompt, special)?;
    let request = fields.into_request(prompts)?;
    if request.echo && request.each.logprobs.is_some() {
        return Err(Error::unsupported(
            "echo with logprobs is not supported: a prompt's log-probabilities are not computed",
        ));
    }
    let answers = request.prompts.len() * request.n as usize;
    if request.prompts.len() > 1 && answers > ANSWERS {
        return Err(Error::arg(format!("prompt and n ask for {answers} answers, expected at most {ANSWERS}")));
    }
    Ok(request)
}

/// Reads either kind of body: a chat has `messages`, a completion has `prompt`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_request(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let fields = Fields::parse(body, unknown)?;
    match (fields.map.contains_key("messages"), fields.map.contains_key("prompt")) {
        (true, false) => parse_chat(body, unknown),
        (false, true) => parse_completion(body, unknown),
        (true, true) => Err(Error::arg("the request has both messages and prompt, expected one of them")),
        (false, false) => {
            let neither = || Error::arg("the request has neither messages nor prompt, expected one of them");
            Err(fields.mistyped(&["messages", "prompt"]).unwrap_or_else(neither))
        }
    }
}

impl Fields {
    fn into_request(mut self, prompts: Vec<Prompt>) -> Result<ParsedRequest> {
        let asked = AskedSampling {
            temperature: self.float("temperature", &Sampling::TEMPERATURE)?,
            top_k: self.integer("top_k", 0, Sampling::MAX_TOP_K.into())?.map(|k| k as u32),
            top_p: self.float("top_p", &Sampling::MASS)?,
            min_p: self.float("min_p", &Sampling::MASS)?,
            repeat_penalty: self.float("repeat_penalty", &Sampling::REPEAT_PENALTY)?,
            frequency_penalty: self.float("frequency_penalty", &Sampling::PENALTY)?,
            presence_penalty: self.float("presence_penalty", &Sampling::PENALTY)?,
        };
        let format = self.format()?;
        let own = Sampling {
            logit_bias: self.logit_bias()?,
            format: format.clone().map(|(format, _)| format),
            seed: self.seed()?,
            ignore_eos: self.flag("ignore_eos")?,
            ..Sampling::default()
        };
        let chat = matches!(prompts.first(), Some(Prompt::Chat(_)));
        let logprobs = if chat { self.chat_logprobs()? } else { self.text_logprobs()? };
        let request = ParsedRequest {
            prompts,
            echo: !chat && self.flag("echo")?,
            asked,
            each: GenerateRequest {
                sampling: asked.over(&Sampling::default(), own),
                max_tokens: self.max_tokens()?,
                stop: self.stop()?,
                logprobs,
                user: self.user()?,
                ..GenerateRequest::default()
            },
            model: self.string("model")?,
            n: self.integer("n", 1, CHOICES.into())?.unwrap_or(1) as u32,
            stream: self.flag("stream")?,
            include_usage: self.include_usage()?,
            tools: Vec::new(),
            calls: Vec::new(),
            parameters: Vec::new(),
            schema: format.and_then(|(format, place)| match format {
                Format::JsonSchema(schema) => Some(WrittenSchema { place, schema }),
                Format::Grammar(_) => None,
            }),
            demands_call: false,
            reasoning: chat && self.reasoning_format()?,
        };
        if chat {
            // Accepted, but the model decides between one call and several.
            self.flag("parallel_tool_calls")?;
        }
        self.refuse_unsupported()?;
        self.finish(REQUEST_FIELDS)?;
        Ok(request)
    }

    /// Whether the last message is continued, if that is said: by vLLM's name, or by that of llama-server's option,
    /// which is for messages of the assistant and only forbids.
    fn continued(&mut self) -> Result<Option<bool>> {
        match (self.choice("continue_final_message")?, self.choice("prefill_assistant")?) {
            (Some(one), Some(other)) if one != other => Err(Error::arg(format!(
                "continue_final_message is {one} and prefill_assistant {other}, expected the same of both"
            ))),
            (continued, prefilled) => Ok(continued.or(prefilled.filter(|wanted| !wanted))),
        }
    }

    /// Whether reasoning is told apart from the answer; llama-server's name and words.
    fn reasoning_format(&mut self) -> Result<bool> {
        match self.string("reasoning_format")?.as_deref() {
            None | Some("auto" | "deepseek") => Ok(true),
            Some("none") => Ok(false),
            Some(other) => {
                let other = quoted(other);
                Err(Error::arg(format!("reasoning_format is {other}, expected auto, deepseek or none")))
            }
        }
    }

    /// Any 64-bit integer; OpenAI's seeds may be negative.
    fn seed(&mut self) -> Result<Option<u64>> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        match whole(&value).or_else(|| negative(&value).map(|seed| seed as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(Error::arg(format!("seed is {}, expected a 64-bit whole number", shown(&value)))),
        }
    }

    /// `max_completion_tokens` is the newer name.
    fn max_tokens(&mut self) -> Result<Option<u32>> {
        let old = self.integer("max_tokens", 1, u64::from(u32::MAX))?;
        let new = self.integer("max_completion_tokens", 1, u64::from(u32::MAX))?;
        Ok(new.or(old).map(|tokens| tokens as u32))
    }

    fn stop(&mut self) -> Result<Vec<String>> {
        let name = self.name("stop");
        let wrong = |value: &Value| {
            Err(Error::arg(format!("{name} is {}, expected a string or an array of strings", shown(value))))
        };
        let strings = match self.take("stop") {
            None => Vec::new(),
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => {
                let mut strings = Vec::new();
                for item in items {
                    match item {
                        Value::String(text) => strings.push(text),
                        other => return wrong(&other),
                    }
                }
                strings
            }
            Some(other) => return wrong(&other),
        };
        let (count, most) = (strings.len(), GenerateRequest::MAX_STOPS);
        if count > most {
            return Err(Error::arg(format!("{name} has {count} strings, expected at most {most}")));
        }
        if let Some(bad) = strings.iter().find(|text| text.is_empty() || text.len() > STOP_BYTES) {
            return Err(Error::arg(format!(
                "{name} has a string of {} bytes, expected 1 to {STOP_BYTES} bytes each",
                bad.len()
            )));
        }
        Ok(strings)
    }

    fn logit_bias(&mut self) -> Result<BTreeMap<TokenId, f32>> {
        let entries = match self.take("logit_bias") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => {
                return Err(Error::arg(format!(
                    "logit_bias is {}, expected an object of token and bias",
                    shown(&other)
                )));
            }
        };
        let (count, most) = (entries.len(), Sampling::MAX_BIASES);
        if count > most {
            return Err(Error::arg(format!("logit_bias has {count} entries, expected at most {most}")));
        }
        let entry = |(token, bias): (String, Value)| {
            let short: String = token.chars().take(32).collect();
            let wrong = || Error::arg(format!("logit_bias has {short:?}, expected a token's number"));
            let id: TokenId = token.parse().map_err(|_| wrong())?;
            if id.to_string() != token {
                return Err(wrong());
            }
            match bias.as_f64() {
                Some(bias) if Sampling::BIAS.contains(&(bias as f32)) => Ok((id, bias as f32)),
                _ => Err(Error::arg(format!(
                    "logit_bias of {short} is {}, expected a number from {} to {}",
                    shown(&bias),
                    Sampling::BIAS.start(),
                    Sampling::BIAS.end()
                ))),
            }
        };
        entries.into_iter().map(entry).collect()
    }

    /// A completion requests log-probabilities with a number; a flag as in chats means no alternatives.
    fn text_logprobs(&mut self) -> Result<Option<u32>> {
        if let Some(Value::Bool(wanted)) = self.map.get("logprobs") {
            let wanted = *wanted;
            self.take("logprobs");
            return Ok(wanted.then_some(0));
        }
        Ok(self.integer("logprobs", 0, TEXT_LOGPROBS.into())?.map(|top| top as u32))
    }

    /// A chat requests log-probabilities with a flag, and alternatives with a number beside it.
    fn chat_logprobs(&mut self) -> Result<Option<u32>> {
        let wanted = self.flag("logprobs")?;
        match self.integer("top_logprobs", 0, GenerateRequest::MAX_LOGPROBS.into())? {
            Some(top) if top > 0 && !wanted => {
                Err(Error::arg("top_logprobs is set without logprobs, expected it to be true"))
            }
            top => Ok(wanted.then_some(top.unwrap_or(0) as u32)),
        }
    }

    fn include_usage(&mut self) -> Result<bool> {
        let Some(map) = self.object("stream_options")? else { return Ok(false) };
        let mut options = Fields::of(map, self.unknown);
        let wanted = options.flag("include_usage").map_err(|e| e.context("stream_options"))?;
        options.finish(&["include_usage"])?;
        Ok(wanted)
    }

    fn refuse_unsupported(&mut self) -> Result<()> {
        for key in UNSUPPORTED_FIELDS {
            let Some(value) = self.take(key) else { continue };
            let asks_for_nothing = match &value {
                Value::Bool(flag) => !flag,
                number @ Value::Number(_) => whole(number) == Some(u64::from(*key == "best_of")),
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty() || (*key == "modalities" && items.iter().all(|m| m == "text")),
                Value::Object(map) => map.is_empty() || map.get("type").is_some_and(|t| t == "text"),
                Value::Null => true,
            };
            if !asks_for_nothing {
                return Err(Error::unsupported(format!("{key} is not supported")));
            }
        }
        Ok(())
    }
}
