//! What an answer is worth, in an experiment. Never learns.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::llama::Model;
use crate::policy::Decoder;
use crate::reward::Grader;
use crate::reward::command;
#[cfg(feature = "daemon")]
use crate::reward::service;
use crate::types::{FinishReason, Generation, PromptText};

/// The kinds of reward there are.
pub const SCHEMES: [&str; 5] = ["length:TOKENS", "regex:PATTERN", "model:PATH", "command:SHELL COMMAND", "http:URL"];

/// Distance from the wanted length, in tokens, at which an answer is worth -1.
const WORST_DISTANCE: f64 = 40.0;
/// Largest compiled pattern, in bytes.
const PATTERN_SIZE: usize = 1 << 20;

/// Where rewards come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RewardSpec {
    /// 1 for an answer of so many tokens (its end included) that ends by itself, falling linearly to -1 at 40 tokens
    /// off; -1 if it was cut off.
    Length(u32),
    /// 1 where the pattern matches the answer's text somewhere, else -1: the mean tells the share that match.
    Regex(String),
    /// A reward model's file, for the same base (see `apad reward train`), or the folder of a classifier.
    Model(PathBuf),
    /// A shell command that reads a line `{"prompt": .., "response": ".."}` an answer and writes a line `{"score":
    /// number}` each, in order. Started for each batch; its input then ends.
    Command(String),
    /// A service that is posted `{"samples": [{"prompt": .., "response": ".."}]}` and replies `{"scores": [numbers]}`,
    /// in order. At most 32 samples a request; failures that may pass are tried again.
    Http(String),
}

impl FromStr for RewardSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || format!("expected one of {}", SCHEMES.join(", "));
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| Error::arg(format!("the reward {text:?} has no scheme, {}", known())))?;
        match scheme {
            "length" => match rest.parse() {
                Ok(tokens) if tokens > 0 => Ok(RewardSpec::Length(tokens)),
                _ => Err(Error::arg(format!("length is {rest:?}, expected a number of tokens like length:20"))),
            },
            "regex" => {
                compile(rest)?;
                Ok(RewardSpec::Regex(rest.to_owned()))
            }
            "model" if rest.is_empty() => {
                Err(Error::arg("the reward model is empty, expected a file like model:reward.gguf"))
            }
            "model" => Ok(RewardSpec::Model(rest.into())),
            "command" if rest.trim().is_empty() => Err(Error::arg("the reward command is empty")),
            "command" => Ok(RewardSpec::Command(rest.to_owned())),
            // `http://host/path` alone is a URL already.
            "http" if rest.starts_with("//") && rest.len() > 2 => Ok(RewardSpec::Http(text.to_owned())),
            "http" if rest.starts_with("http://") || rest.starts_with("https://") => {
                Ok(RewardSpec::Http(rest.to_owned()))
            }
            "http" => Err(Error::arg(format!(
                "the reward service is {rest:?}, expected http:URL like http://localhost:80/score"
            ))),
            _ => Err(Error::arg(format!("there is no reward scheme {scheme:?}, {}", known()))),
        }
    }
}

impl fmt::Display for RewardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RewardSpec::Length(tokens) => write!(f, "length:{tokens}"),
            RewardSpec::Regex(pattern) => write!(f, "regex:{pattern}"),
            RewardSpec::Model(file) => write!(f, "model:{}", file.display()),
            RewardSpec::Command(command) => write!(f, "command:{command}"),
            RewardSpec::Http(url) => write!(f, "http:{url}"),
        }
    }
}

impl TryFrom<String> for RewardSpec {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RewardSpec> for String {
    fn from(spec: RewardSpec) -> String {
        spec.to_string()
    }
}

/// A reward that is ready to judge.
pub(super) enum Reward {
    Length(u32),
    Regex(Regex),
    Model(Grader),
    Command {
        command: String,
        timeout: Duration,
    },
    #[cfg(feature = "daemon")]
    Http {
        url: String,
        timeout: Duration,
    },
}

impl Reward {
    pub fn new(spec: &RewardSpec, timeout: Duration, decoder: &Arc<Decoder>, base: &Arc<Model>) -> Result<Self> {
        Ok(match spec {
            RewardSpec::Length(tokens) => Reward::Length(*tokens),
            RewardSpec::Regex(pattern) => Reward::Regex(compile(pattern)?),
            RewardSpec::Model(path) => Reward::Model(Grader::open(decoder, base, path)?),
            RewardSpec::Command(command) => Reward::Command { command: command.clone(), timeout },
            #[cfg(feature = "daemon")]
            RewardSpec::Http(url) => Reward::Http { url: url.clone(), timeout },
            #[cfg(not(feature = "daemon"))]
            RewardSpec::Http(_) => return Err(Error::unsupported("this build has no HTTP, so no reward service")),
        })
    }

    /// The score of each answer, all finite.
    ///
    /// # Errors
    /// `Callback` if a command or service dies, takes too long, or answers anything but scores; `Closed` if `stop` is
    /// set meanwhile.
    pub fn scores(&self, answers: &[(&PromptText, &Generation)], stop: &AtomicBool) -> Result<Vec<f64>> {
        match self {
            Reward::Length(wanted) => Ok(answers.iter().map(|(_, g)| length(*wanted, g)).collect()),
            Reward::Regex(pattern) => {
                Ok(answers.iter().map(|(_, g)| if pattern.is_match(&g.text) { 1.0 } else { -1.0 }).collect())
            }
            Reward::Model(grader) => model(grader, answers),
            Reward::Command { command, timeout } => command::scores(command, answers, *timeout, stop),
            #[cfg(feature = "daemon")]
            Reward::Http { url, timeout } => service::scores(url, answers, *timeout, stop),
        }
    }
}

fn model(grader: &Grader, answers: &[(&PromptText, &Generation)]) -> Result<Vec<f64>> {
    let tokens: Vec<_> = answers.iter().map(|(_, g)| (g.prompt.as_slice(), g.response.as_slice())).collect();
    let scores = grader.score(&tokens)?;
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
    // Its own message draws the pattern over several lines.
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
        text.parse::<RewardSpec>().unwrap_err().message().to_owned()
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
        assert_eq!("http://a/b".parse::<RewardSpec>().unwrap().to_string(), "http:http://a/b");
        for text in ["length:20", r"regex:^a:b\d", "command:jq -c '{score: 1}'", "http:http://a/b", "model:a/b.gguf"] {
            assert_eq!(text.parse::<RewardSpec>().unwrap().to_string(), text);
        }
    }
}
