//! Reads the JSON bodies that clients send (chat, completion, feedback, preference) into checked values: one mechanism
//! for HTTP and C. Never runs anything.

mod learning;
mod tools;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Engine;
use crate::engine::GenerateRequest;
use crate::error::{Error, Result};
use crate::types::{ChatMessage, Format, GenerationId, Sampling, TokenId};

pub use learning::{
    ParsedSample, Preference, parse_feedback, parse_forget, parse_preference, parse_review, parse_sample,
};

/// Most stop strings of a request.
const STOP_STRINGS: usize = 16;
/// Longest stop string, in bytes.
const STOP_BYTES: usize = 256;
/// Most answers to one request.
const CHOICES: u64 = 8;
/// Most entries of a logit bias.
const BIASES: usize = 300;
/// Longest name of a user, in bytes.
const USER_BYTES: usize = 256;
/// Longest id of a generation, in bytes.
const ID_BYTES: usize = 64;

/// What is done about a key that this library does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It is an error that names the nearest known key: for callers that are compiled against this library.
    Refuse,
    /// It is skipped: OpenAI clients send fields that mean nothing here.
    Ignore,
}

/// What the model is to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A conversation, put through the model's chat template.
    Chat(Vec<ChatMessage>),
    /// A conversation that may use tools, as the template gets both.
    Tools {
        /// Messages, whatever members they have.
        messages: Vec<Value>,
        /// Tools that may be called.
        tools: Vec<Value>,
    },
    /// Plain text.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<TokenId>),
}

/// A request for an answer, checked as far as it can be without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How to sample.
    pub sampling: Sampling,
    /// Most tokens to make; the configured default if unset.
    pub max_tokens: Option<u32>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Whom it is for.
    pub user: Option<String>,
    /// The model the client named.
    pub model: Option<String>,
    /// Answers wanted, each a generation of its own.
    pub n: u32,
    /// Most probable tokens to tell beside each sampled one, with log-probabilities; `None` tells nothing.
    pub logprobs: Option<u32>,
    /// Whether the answer is wanted piece by piece.
    pub stream: bool,
    /// Whether the last piece of a stream is to carry the token counts.
    pub include_usage: bool,
    /// Names of the tools that the answer may call.
    pub tools: Vec<String>,
}

impl ParsedRequest {
    /// Tokenizes the prompt with the engine's model, and makes what is to be generated for one answer.
    ///
    /// # Errors
    /// As [`Engine::chat_prompt`] and [`Engine::tokenize`].
    pub fn resolve(self, engine: &Engine) -> Result<GenerateRequest> {
        let prompt = self.prompt.tokens(engine)?;
        Ok(GenerateRequest {
            prompt,
            sampling: self.sampling,
            max_tokens: self.max_tokens,
            stop: self.stop,
            logprobs: self.logprobs,
            user: self.user,
        })
    }
}

impl Prompt {
    /// In tokens of the engine's model.
    pub(crate) fn tokens(self, engine: &Engine) -> Result<Vec<TokenId>> {
        match self {
            Prompt::Chat(messages) => engine.chat_prompt(&messages),
            Prompt::Tools { messages, tools } => engine.tools_prompt(&messages, &tools),
            Prompt::Text(text) => engine.tokenize(&text),
            Prompt::Tokens(tokens) => Ok(tokens),
        }
    }
}

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// `Arg` names the field and what was expected; `Unsupported` names a field that would change the answer and can't be
/// honoured.
pub fn parse_chat(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let mut fields = Fields::parse(body, unknown)?;
    let messages = fields.take("messages").ok_or_else(|| Error::arg("messages is missing"))?;
    let tools = tools::take(&mut fields)?;
    let prompt = if tools.given.is_empty() && !tools::speak_of_tools(&messages) {
        Prompt::Chat(messages_of(messages, unknown)?)
    } else {
        Prompt::Tools { messages: tools::messages_of(messages)?, tools: tools.given }
    };
    let mut request = fields.into_request(prompt)?;
    request.tools = tools.names;
    if let Some(schema) = tools.forced {
        if request.sampling.format.is_some() {
            return Err(Error::arg("tool_choice demands a call, and response_format or grammar another answer"));
        }
        request.sampling.format = Some(Format::JsonSchema(schema));
    }
    Ok(request)
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_completion(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let mut fields = Fields::parse(body, unknown)?;
    let prompt = fields.take("prompt").ok_or_else(|| Error::arg("prompt is missing"))?;
    let prompt = prompt_of("prompt", prompt)?;
    fields.into_request(prompt)
}

/// Reads either body: a chat has `messages`, a completion has `prompt`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_request(body: &[u8], unknown: Unknown) -> Result<ParsedRequest> {
    let fields = Fields::parse(body, unknown)?.map;
    match (fields.contains_key("messages"), fields.contains_key("prompt")) {
        (true, false) => parse_chat(body, unknown),
        (false, true) => parse_completion(body, unknown),
        (true, true) => Err(Error::arg("the request has both messages and prompt, expected one of them")),
        (false, false) => Err(Error::arg("the request has neither messages nor prompt, expected one of them")),
    }
}

/// Reads a JSON array of chat messages.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_messages(body: &[u8], unknown: Unknown) -> Result<Vec<ChatMessage>> {
    messages_of(json(body)?, unknown)
}

/// Reads `{content, add_special?}`: a text to tokenize, and whether with what the model begins with.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_tokenize(body: &[u8], unknown: Unknown) -> Result<(String, bool)> {
    let mut fields = Fields::parse(body, unknown)?;
    let content = fields.string("content")?.ok_or_else(|| Error::arg("content is missing"))?;
    let add_special = fields.flag("add_special")?;
    fields.finish(&["content", "add_special"])?;
    Ok((content, add_special))
}

/// Texts to embed, and how the numbers are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedEmbeddings {
    /// Each a text or tokens.
    pub input: Vec<Prompt>,
    /// As base64 of little-endian 32-bit floats instead of a list.
    pub base64: bool,
}

/// Most texts of one request for embeddings.
const EMBEDDINGS: usize = 256;

/// Reads the body of `POST /v1/embeddings`.
///
/// # Errors
/// As [`parse_chat`].
pub fn parse_embeddings(body: &[u8], unknown: Unknown) -> Result<ParsedEmbeddings> {
    let mut fields = Fields::parse(body, unknown)?;
    let input = match fields.take("input").ok_or_else(|| Error::arg("input is missing"))? {
        Value::Array(items) if items.iter().any(|item| !item.is_number()) => items,
        other => vec![other],
    };
    if input.len() > EMBEDDINGS {
        return Err(Error::arg(format!("input has {} texts, expected at most {EMBEDDINGS}", input.len())));
    }
    let input = input.into_iter().map(|item| prompt_of("input", item)).collect::<Result<Vec<_>>>()?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(Error::arg("encoding_format is not known, expected float or base64")),
    };
    if fields.take("dimensions").is_some() {
        return Err(Error::unsupported("dimensions is not supported: embeddings are as wide as the model"));
    }
    let (_, _) = (fields.string("model")?, fields.user()?);
    fields.finish(&["input", "model", "encoding_format", "dimensions", "user"])?;
    Ok(ParsedEmbeddings { input, base64 })
}

/// Reads `{tokens}`: tokens to give the text of.
///
/// # Errors
/// As [`parse_tokenize`].
pub fn parse_detokenize(body: &[u8], unknown: Unknown) -> Result<Vec<TokenId>> {
    let mut fields = Fields::parse(body, unknown)?;
    let Some(Value::Array(items)) = fields.take("tokens") else {
        return Err(Error::arg("tokens is missing, expected an array of tokens"));
    };
    fields.finish(&["tokens"])?;
    let token = |item: &Value| {
        let id = item.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| Error::arg(format!("tokens has {}, expected tokens' numbers", shown(item))))
    };
    items.iter().map(token).collect()
}

/// The members of a JSON object; each is taken out when it is read, so that what is left is what nobody knows.
struct Fields {
    map: Map<String, Value>,
    unknown: Unknown,
}

/// Fields of a request beside `messages` and `prompt`, for the nearest name of an unknown one.
const REQUEST_FIELDS: &[&str] = &[
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
    "seed",
    "stop",
    "user",
    "n",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
];

/// Fields of the OpenAI API that would change the answer and are not there: refused unless they ask for nothing.
const UNSUPPORTED_FIELDS: &[&str] = &["functions", "echo", "suffix", "best_of", "modalities", "audio"];

impl Fields {
    fn parse(body: &[u8], unknown: Unknown) -> Result<Self> {
        match json(body)? {
            Value::Object(map) => Ok(Self { map, unknown }),
            other => Err(Error::arg(format!("the body is {}, expected a JSON object", kind(&other)))),
        }
    }

    /// A member that is there and not null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.shift_remove(key).filter(|value| !value.is_null())
    }

    fn into_request(mut self, prompt: Prompt) -> Result<ParsedRequest> {
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: self.float("temperature", 0.0, 10.0)?.unwrap_or(plain.temperature),
            top_k: self.integer("top_k", 0, 1 << 20)?.map_or(plain.top_k, |k| k as u32),
            top_p: self.float("top_p", f64::from(f32::MIN_POSITIVE), 1.0)?.unwrap_or(plain.top_p),
            min_p: self.float("min_p", 0.0, 1.0)?.unwrap_or(plain.min_p),
            repeat_penalty: self.float("repeat_penalty", 0.01, 10.0)?.unwrap_or(plain.repeat_penalty),
            frequency_penalty: self.float("frequency_penalty", -2.0, 2.0)?.unwrap_or(plain.frequency_penalty),
            presence_penalty: self.float("presence_penalty", -2.0, 2.0)?.unwrap_or(plain.presence_penalty),
            logit_bias: self.logit_bias()?,
            format: self.format()?,
            seed: self.seed()?,
        };
        let logprobs = match prompt {
            Prompt::Chat(_) | Prompt::Tools { .. } => self.chat_logprobs()?,
            Prompt::Text(_) | Prompt::Tokens(_) => self.integer("logprobs", 0, 5)?.map(|top| top as u32),
        };
        let request = ParsedRequest {
            prompt,
            sampling,
            max_tokens: self.max_tokens()?,
            stop: self.stop()?,
            user: self.user()?,
            model: self.string("model")?,
            n: self.integer("n", 1, CHOICES)?.unwrap_or(1) as u32,
            logprobs,
            stream: self.flag("stream")?,
            include_usage: self.include_usage()?,
            tools: Vec::new(),
        };
        // Whether there is one call or more is for the model to say.
        self.flag("parallel_tool_calls")?;
        self.refuse_unsupported()?;
        self.finish(REQUEST_FIELDS)?;
        Ok(request)
    }

    fn number(&mut self, key: &str, low: f64, high: f64) -> Result<Option<f64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && (low..=high).contains(&number) => Ok(Some(number)),
            _ if low == f64::from(f32::MIN_POSITIVE) => {
                Err(Error::arg(format!("{key} is {}, expected a number above 0, at most {high}", shown(&value))))
            }
            _ => Err(Error::arg(format!("{key} is {}, expected a number from {low} to {high}", shown(&value)))),
        }
    }

    fn float(&mut self, key: &str, low: f64, high: f64) -> Result<Option<f32>> {
        Ok(self.number(key, low, high)?.map(|number| number as f32))
    }

    fn integer(&mut self, key: &str, low: u64, high: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ if low == high => Err(Error::arg(format!("{key} is {}, expected {low}", shown(&value)))),
            _ => Err(Error::arg(format!("{key} is {}, expected a whole number from {low} to {high}", shown(&value)))),
        }
    }

    /// Any 64-bit integer; OpenAI's seeds may be negative.
    fn seed(&mut self) -> Result<Option<u64>> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        match value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64)) {
            Some(seed) => Ok(Some(seed)),
            None => Err(Error::arg(format!("seed is {}, expected a 64-bit whole number", shown(&value)))),
        }
    }

    fn string(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Error::arg(format!("{key} is {}, expected a string", shown(&other)))),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(Error::arg(format!("{key} is {}, expected true or false", shown(&other)))),
        }
    }

    fn id(&mut self, key: &str) -> Result<GenerationId> {
        let id = self.string(key)?.ok_or_else(|| Error::arg(format!("{key} is missing")))?;
        match id.len() {
            1..=ID_BYTES => Ok(GenerationId(id)),
            bytes => Err(Error::arg(format!("{key} has {bytes} bytes, expected 1 to {ID_BYTES}"))),
        }
    }

    fn user(&mut self) -> Result<Option<String>> {
        match self.string("user")? {
            Some(user) if user.len() > USER_BYTES => {
                Err(Error::arg(format!("user has {} bytes, expected at most {USER_BYTES}", user.len())))
            }
            user => Ok(user),
        }
    }

    /// `max_completion_tokens` is the newer name of the same thing.
    fn max_tokens(&mut self) -> Result<Option<u32>> {
        let old = self.integer("max_tokens", 1, u64::from(u32::MAX))?;
        let new = self.integer("max_completion_tokens", 1, u64::from(u32::MAX))?;
        Ok(new.or(old).map(|tokens| tokens as u32))
    }

    fn stop(&mut self) -> Result<Vec<String>> {
        let wrong = |value: &Value| {
            Err(Error::arg(format!("stop is {}, expected a string or an array of strings", shown(value))))
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
        if strings.len() > STOP_STRINGS {
            return Err(Error::arg(format!("stop has {} strings, expected at most {STOP_STRINGS}", strings.len())));
        }
        if let Some(bad) = strings.iter().find(|text| text.is_empty() || text.len() > STOP_BYTES) {
            return Err(Error::arg(format!(
                "stop has a string of {} bytes, expected 1 to {STOP_BYTES} bytes each",
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
        if entries.len() > BIASES {
            return Err(Error::arg(format!("logit_bias has {} entries, expected at most {BIASES}", entries.len())));
        }
        let entry = |(token, bias): (String, Value)| {
            let short: String = token.chars().take(32).collect();
            let id = token
                .parse()
                .map_err(|_| Error::arg(format!("logit_bias has {short:?}, expected a token's number")))?;
            match bias.as_f64() {
                Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
                _ => Err(Error::arg(format!(
                    "logit_bias of {short} is {}, expected a number from -100 to 100",
                    shown(&bias)
                ))),
            }
        };
        entries.into_iter().map(entry).collect()
    }

    /// What the answer is held to, by `response_format` or `grammar`.
    fn format(&mut self) -> Result<Option<Format>> {
        let grammar = self.string("grammar")?.map(Format::Grammar);
        let format = match self.take("response_format") {
            None => None,
            Some(Value::Object(map)) => {
                let fields = Fields { map, unknown: self.unknown };
                fields.response_format().map_err(|e| e.context("response_format"))?
            }
            Some(other) => return Err(Error::arg(format!("response_format is {}, expected an object", shown(&other)))),
        };
        match (grammar, format) {
            (Some(_), Some(_)) => {
                Err(Error::arg("the request has both grammar and response_format, expected one of them"))
            }
            (grammar, format) => Ok(grammar.or(format)),
        }
    }

    fn response_format(mut self) -> Result<Option<Format>> {
        let format = match self.string("type")?.as_deref() {
            Some("text") => None,
            Some("json_object") => Some(Format::JsonSchema(json!({"type": "object"}))),
            Some("json_schema") => {
                let Some(Value::Object(map)) = self.take("json_schema") else {
                    return Err(Error::arg("json_schema is missing, expected an object with a schema"));
                };
                match (Fields { map, unknown: Unknown::Ignore }).take("schema") {
                    Some(schema @ Value::Object(_)) => Some(Format::JsonSchema(schema)),
                    _ => return Err(Error::arg("json_schema has no schema, expected an object")),
                }
            }
            _ => return Err(Error::arg("type is not known, expected text, json_object or json_schema")),
        };
        self.finish(&["type", "json_schema"])?;
        Ok(format)
    }

    /// A chat asks with a flag, and for alternatives with a number beside it.
    fn chat_logprobs(&mut self) -> Result<Option<u32>> {
        let wanted = self.flag("logprobs")?;
        match self.integer("top_logprobs", 0, 20)? {
            Some(top) if top > 0 && !wanted => {
                Err(Error::arg("top_logprobs is set without logprobs, expected it to be true"))
            }
            top => Ok(wanted.then_some(top.unwrap_or(0) as u32)),
        }
    }

    fn include_usage(&mut self) -> Result<bool> {
        match self.take("stream_options") {
            None => Ok(false),
            Some(Value::Object(map)) => {
                let mut options = Fields { map, unknown: self.unknown };
                let wanted = options.flag("include_usage").map_err(|e| e.context("stream_options"))?;
                options.finish(&["include_usage"])?;
                Ok(wanted)
            }
            Some(other) => Err(Error::arg(format!("stream_options is {}, expected an object", shown(&other)))),
        }
    }

    fn refuse_unsupported(&mut self) -> Result<()> {
        for key in UNSUPPORTED_FIELDS {
            let Some(value) = self.take(key) else { continue };
            let asks_for_nothing = match &value {
                Value::Bool(flag) => !flag,
                Value::Number(number) => number.as_u64() == Some(u64::from(*key == "best_of")),
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

    /// Errs on what nobody took, unless unknown keys are ignored.
    fn finish(self, known: &[&str]) -> Result<()> {
        match self.map.keys().next() {
            Some(key) if self.unknown == Unknown::Refuse => Err(unknown_key(key, known)),
            _ => Ok(()),
        }
    }
}

fn unknown_key(key: &str, known: &[&str]) -> Error {
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    let key: String = key.chars().take(64).collect();
    match nearest {
        Some((0, name)) => Error::arg(format!("{name} does not belong in this kind of request")),
        Some((_, name)) => Error::arg(format!("unknown field {key:?}, did you mean {name:?}?")),
        None => Error::arg(format!("unknown field {key:?}, expected one of {}", known.join(", "))),
    }
}

fn json(body: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Error::arg(format!("the body is not valid UTF-8 from byte {} on", e.valid_up_to())))?;
    serde_json::from_str(text).map_err(|e| Error::arg(format!("the body is not valid JSON: {e}")))
}

fn messages_of(value: Value, unknown: Unknown) -> Result<Vec<ChatMessage>> {
    let Value::Array(items) = value else {
        return Err(Error::arg(format!("messages is {}, expected an array of messages", shown(&value))));
    };
    if items.is_empty() {
        return Err(Error::arg("messages is empty, expected at least one message"));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| message_of(item, unknown).map_err(|e| e.context(format!("messages[{i}]"))))
        .collect()
}

fn message_of(value: Value, unknown: Unknown) -> Result<ChatMessage> {
    let Value::Object(map) = value else {
        return Err(Error::arg(format!("it is {}, expected an object with role and content", shown(&value))));
    };
    let mut fields = Fields { map, unknown };
    let role = fields.string("role")?.ok_or_else(|| Error::arg("role is missing"))?;
    let content = match fields.take("content") {
        None => return Err(Error::arg("content is missing")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => parts.into_iter().map(text_of_part).collect::<Result<String>>()?,
        Some(other) => {
            return Err(Error::arg(format!("content is {}, expected a string or an array of parts", shown(&other))));
        }
    };
    fields.finish(&["role", "content"])?;
    Ok(ChatMessage { role, content })
}

fn text_of_part(part: Value) -> Result<String> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(Error::arg("a content part of type text has no text")),
        (Some(other), _) => Err(Error::unsupported(format!("content parts of type {other:?} are not supported"))),
        (None, _) => Err(Error::arg("a content part has no type, expected {\"type\": \"text\", \"text\": ...}")),
    }
}

fn prompt_of(name: &str, value: Value) -> Result<Prompt> {
    let expected = "expected a string, an array of one string, or an array of tokens";
    let wrong = |shown: String| Error::arg(format!("{name} is {shown}, {expected}"));
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(mut items) => match items.as_mut_slice() {
            [Value::String(text)] => Ok(Prompt::Text(std::mem::take(text))),
            [Value::Number(_), ..] => items
                .iter()
                .map(|item| item.as_u64().and_then(|id| TokenId::try_from(id).ok()).ok_or(item))
                .collect::<Result<Vec<_>, _>>()
                .map(Prompt::Tokens)
                .map_err(|item| Error::arg(format!("{name} has {} among its tokens, {expected}", shown(item)))),
            items => Err(wrong(format!("an array of {} other values", items.len()))),
        },
        other => Err(wrong(shown(&other))),
    }
}

/// A value as an error message shows it: numbers and flags as they are, the rest by kind, so that no prompt gets into a
/// log.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        other => kind(other).to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
