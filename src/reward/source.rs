//! The kinds of reward: the sources of scores, in their written form (`command:./judge`) and opened for use. Never
//! weights a score and never learns.
//!
//! A new kind is a variant of [`Source`]: its name, parsing, opening and scoring are all in this file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::command;
use super::model::RewardModel;
#[cfg(feature = "daemon")]
use super::service;
use crate::config::RewardConfig;
use crate::error::{Error, Result};
use crate::llama::Model;
use crate::policy::Decoder;
use crate::types::{FinishReason, Generation, PromptText};

/// The written form of each kind.
pub const SCHEMES: [&str; 5] = ["length:TOKENS", "regex:PATTERN", "model:PATH", "command:SHELL COMMAND", "http:URL"];

/// What each kind means, for people who choose one.
pub const SCHEMES_EXPLAINED: &str = "\
length:TOKENS (1 for an answer of that length that ends by itself, -1 at 40 tokens off or cut off),
regex:PATTERN (1 where it matches, else -1), model:PATH (a reward model: a file for the same base, see `apad reward
train`, or a classifier's folder), command:SHELL COMMAND (reads {\"prompt\", \"response\"} lines until its input
ends, writes a line {\"score\": number} each), http:URL (is posted {\"samples\": [{\"prompt\", \"response\"}]},
replies {\"scores\": [numbers]})";

/// Distance from the wanted length, in tokens, at which the score is -1.
const WORST_DISTANCE: f64 = 40.0;
/// Largest compiled pattern, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// A kind of reward: a source of scores for answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// 1 for an answer of that many tokens (end included) that ends by itself, falling linearly to -1 at 40 tokens off;
    /// -1 if it was cut off.
    Length(u32),
    /// 1 if the pattern matches anywhere in the answer's text, else -1; the mean shows the share that match.
    Regex(String),
    /// A reward model's file, for the same base (see `apad reward train`), or the folder of a classifier.
    Model(PathBuf),
    /// A shell command that reads a line `{"prompt": .., "response": ".."}` per answer and writes a line `{"score":
    /// number}` for each, in order. Started for each batch, after which its input ends.
    Command(String),
    /// A service that receives a POST of `{"samples": [{"prompt": .., "response": ".."}]}` and replies `{"scores":
    /// [numbers]}`, in order. At most 32 samples per request; temporary failures are retried.
    Http(String),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || format!("expected one of {}", SCHEMES.join(", "));
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| Error::arg(format!("the reward {text:?} has no scheme, {}", known())))?;
        match scheme {
            "length" => match rest.parse() {
                Ok(tokens) if tokens > 0 => Ok(Source::Length(tokens)),
                _ => Err(Error::arg(format!("length is {rest:?}, expected a number of tokens like length:20"))),
            },
            "regex" => {
                compile(rest)?;
                Ok(Source::Regex(rest.to_owned()))
            }
            "model" if rest.is_empty() => {
                Err(Error::arg("the reward model is empty, expected a file like model:reward.gguf"))
            }
            "model" => Ok(Source::Model(rest.into())),
            "command" if rest.trim().is_empty() => Err(Error::arg("the reward command is empty")),
            "command" => Ok(Source::Command(rest.to_owned())),
            // `http://host/path` is a URL by itself.
            "http" if rest.starts_with("//") && rest.len() > 2 => Ok(Source::Http(text.to_owned())),
            "http" if rest.starts_with("http://") || rest.starts_with("https://") => Ok(Source::Http(rest.to_owned())),
            "http" => Err(Error::arg(format!(
                "the reward service is {rest:?}, expected http:URL like http://localhost:80/score"
            ))),
            _ => Err(Error::arg(format!("there is no reward scheme {scheme:?}, {}", known()))),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Length(tokens) => write!(f, "length:{tokens}"),
            Source::Regex(pattern) => write!(f, "regex:{pattern}"),
            Source::Model(file) => write!(f, "model:{}", file.display()),
            Source::Command(command) => write!(f, "command:{command}"),
            Source::Http(url) => write!(f, "http:{url}"),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(spec: Source) -> String {
        spec.to_string()
    }
}

/// An answer with its prompt.
pub type Asked<'a> = (&'a PromptText, &'a Generation);

/// A source that is ready to score answers.
pub struct Grader(Box<Scores>);

type Scores = dyn Fn(&[Asked], &AtomicBool) -> Result<Vec<f64>> + Send + Sync;

impl Source {
    /// The command or service in the settings, if any.
    pub fn external(config: &RewardConfig) -> Option<Self> {
        let command = config.command.clone().map(Source::Command);
        command.or_else(|| config.url.clone().map(Source::Http))
    }

    /// Loads and compiles what it needs. A command or service may take `timeout` per batch; `decoder` and `base` are
    /// the model whose answers are scored.
    ///
    /// # Errors
    /// As [`RewardModel::open`] for a reward model; `Arg` for an invalid pattern; `Unsupported` for a service in a
    /// build without HTTP.
    pub fn open(&self, timeout: Duration, decoder: &Arc<Decoder>, base: &Arc<Model>) -> Result<Grader> {
        self.open_as("the reward command", timeout, decoder, base)
    }

    /// The same; errors of a command call it `who`.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_as(&self, who: &str, timeout: Duration, decoder: &Arc<Decoder>, base: &Arc<Model>) -> Result<Grader> {
        Ok(Grader(match self.clone() {
            Source::Length(wanted) => {
                Box::new(move |answers, _| Ok(answers.iter().map(|(_, g)| length(wanted, g)).collect()))
            }
            Source::Regex(pattern) => {
                let pattern = compile(&pattern)?;
                let score = move |text: &str| if pattern.is_match(text) { 1.0 } else { -1.0 };
                Box::new(move |answers, _| Ok(answers.iter().map(|(_, g)| score(&g.text)).collect()))
            }
            Source::Model(path) => {
                let reward_model = RewardModel::open(decoder, base, &path)?;
                Box::new(move |answers, _| model(&reward_model, answers))
            }
            Source::Command(command) => {
                let who = who.to_owned();
                Box::new(move |answers, stop| command::scores(&command, &who, answers, timeout, stop))
            }
            #[cfg(feature = "daemon")]
            Source::Http(url) => Box::new(move |answers, stop| service::scores(&url, answers, timeout, stop)),
            #[cfg(not(feature = "daemon"))]
            Source::Http(_) => return Err(Error::unsupported("this build has no HTTP, so no reward service")),
        }))
    }
}

impl Grader {
    /// The score of each answer, all finite.
    ///
    /// # Errors
    /// `Callback` if a command or service dies, takes too long, or answers anything but scores; `Closed` if `stop` is
    /// set meanwhile.
    pub fn scores(&self, answers: &[Asked], stop: &AtomicBool) -> Result<Vec<f64>> {
        (self.0)(answers, stop)
    }
}

fn model(reward_model: &RewardModel, answers: &[Asked]) -> Result<Vec<f64>> {
    let tokens: Vec<_> = answers.iter().map(|(_, g)| (g.prompt.as_slice(), g.response.as_slice())).collect();
    let scores = reward_model.score(&tokens)?;
    match scores.iter().find(|score| !score.is_finite()) {
        Some(score) => {
            Err(Error::callback(format!("the reward model gave the score {score}, expected a finite number")))
        }
        None => Ok(scores.into_iter().map(f64::from).collect()),
    }
}

fn length(wanted: u32, answer: &Generation) -> f64 {
    if answer.finish != FinishReason::Stop {
        return -1.0;
    }
    let distance = (answer.response.len() as f64 - f64::from(wanted)).abs();
    (1.0 - 2.0 * distance / WORST_DISTANCE).max(-1.0)
}

fn compile(pattern: &str) -> Result<Regex> {
    let built = RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).build();
    // Its own message spreads the pattern over several lines.
    built.map_err(|e| {
        let text = e.to_string();
        let why = text.lines().last().unwrap_or_default();
        Error::arg(format!("the pattern {pattern:?} is no regular expression: {}", why.trim_start_matches("error: ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        text.parse::<Source>().unwrap_err().message().to_owned()
    }

    #[test]
    fn a_scheme_that_is_not_there_is_refused_with_those_that_are() {
        let known = "expected one of length:TOKENS, regex:PATTERN, model:PATH, command:SHELL COMMAND, http:URL";
        assert_eq!(message("judge:me"), format!("there is no reward scheme \"judge\", {known}"));
        assert!(message("http:localhost").contains("expected http:URL"));
        assert!(message("20").contains("has no scheme"));
        assert!(message("length:0").contains("like length:20"));
        assert!(message("regex:(").contains("is no regular expression: unclosed group"), "{}", message("regex:("));
        assert!(message("command: ").contains("empty"));
    }

    #[test]
    fn a_reward_is_written_as_it_is_read() {
        assert_eq!("http://a/b".parse::<Source>().unwrap().to_string(), "http:http://a/b");
        for text in ["length:20", r"regex:^a:b\d", "command:jq -c '{score: 1}'", "http:http://a/b", "model:a/b.gguf"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }
}
