//! `apad bench serve`: a closed-loop client for any OpenAI-compatible server; measures several in turns. Starts none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use apa::types::ChatMessage;
use clap::{Args, ValueEnum};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::WrongUse;
use crate::client::{ChatParams, Client};
use crate::flags::local_daemon;

/// Measure a running server: time to first token, gaps between tokens, tokens per second
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad bench serve --url http://127.0.0.1:8372
  apad bench serve --url http://127.0.0.1:8372 --url http://127.0.0.1:8080 --rounds 3 --json

Each stream asks its next question when its last answer has ended. A cold prompt shares nothing with any other but
what the chat template writes; shared ones begin alike and differ in their last words. Several servers are measured
in turns, setting by setting, so that a busy machine troubles them alike. The time to the first token is that to the
first text; gaps are those between two pieces of text of one answer. Where some streams are held to a schema, which
asks for an array that never ends, both are those of the others.")]
pub struct Options {
    /// Address of an OpenAI-compatible server (may be given often)
    #[arg(long = "url", value_name = "URL", default_values_t = [local_daemon()])]
    urls: Vec<String>,
    /// Key, where the servers ask for one
    #[arg(long, env = "APAD_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<String>,
    /// Numbers of streams to measure
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    streams: Vec<u32>,
    /// Beginnings of the prompts to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Prefix::Cold, Prefix::Shared])]
    prefixes: Vec<Prefix>,
    /// Numbers of those streams whose answers are held to a JSON schema; the gaps of the others are told apart
    #[arg(long, value_name = "STREAMS", value_delimiter = ',', default_values_t = [0],
        value_parser = clap::value_parser!(u32).range(0..=1024))]
    structured: Vec<u32>,
    /// Questions that each stream asks, one after the other
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Words of a question; with most tokenizers a token each
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    words: u32,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    tokens: u32,
    /// Tokens that no answer may hold: those that would end it make all answers equally long
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    forbid: Vec<u32>,
    /// Times that each setting is measured on each server
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seeds the questions, which are the same for every server
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print a JSON line for each measurement
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Prefix {
    Cold,
    Shared,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Prefix::Cold => "cold",
            Prefix::Shared => "shared",
        })
    }
}

pub async fn run(options: Options) -> Result<()> {
    let mut clients = Vec::new();
    for url in &options.urls {
        // Servers differ in how long they keep a connection, and one closed meanwhile would lose a request.
        clients.push((url.as_str(), Client::unpooled(url, options.key.clone())?));
    }
    if clients.iter().enumerate().any(|(i, (url, _))| clients[..i].iter().any(|(other, _)| other == url)) {
        return Err(WrongUse("--url names a server twice, expected each once".into()).into());
    }
    let mut headed = options.json;
    for round in 0..options.rounds {
        for setting in settings(&options) {
            for (url, client) in &clients {
                let measured = measure(&options, client, setting, round).await?;
                if let (0, Some(error)) = (measured.answers, &measured.error) {
                    bail!("{url} gave no answer: {error}");
                }
                if !std::mem::replace(&mut headed, true) {
                    println!("{}", head());
                }
                let line = measured.line(url, setting, round);
                println!("{}", if options.json { line.to_string() } else { row(&line) });
            }
        }
    }
    Ok(())
}

/// What is measured at a time.
#[derive(Clone, Copy)]
struct Setting {
    streams: u32,
    /// How many of the streams are held to a schema; at most all.
    structured: u32,
    prefix: Prefix,
}

/// Every combination that was asked for.
fn settings(options: &Options) -> Vec<Setting> {
    let mut all = Vec::new();
    for &streams in &options.streams {
        for &prefix in &options.prefixes {
            let fitting = options.structured.iter().filter(|structured| **structured <= streams);
            all.extend(fitting.map(|&structured| Setting { streams, structured, prefix }));
        }
    }
    all
}

/// A schema of nested values whose answers don't end.
fn endless() -> Value {
    let text = json!({"type": "string"});
    let person = json!({
        "type": "object",
        "properties": {
            "name": text, "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": text},
            "home": {"type": "object", "properties": {"street": text, "city": text}, "required": ["city"]},
            "kind": {"enum": ["friend", "family", "colleague"]},
        },
        "required": ["name", "age", "kind"], "additionalProperties": false,
    });
    let schema = json!({"type": "array", "items": person, "minItems": 1000});
    json!({"type": "json_schema", "json_schema": {"name": "people", "schema": schema}})
}

/// What all streams of one setting saw; the times are those of the streams without a schema, if there are any.
#[derive(Default)]
struct Measured {
    seconds: f64,
    tokens: u64,
    answers: u32,
    first: Vec<Duration>,
    gaps: Vec<Duration>,
    errors: u32,
    error: Option<String>,
}

async fn measure(options: &Options, client: &Client, setting: Setting, round: u32) -> Result<Measured> {
    let Setting { streams, structured, prefix } = setting;
    let seed = [options.seed, u64::from(round), u64::from(streams), prefix as u64];
    let params = |response_format| {
        Arc::new(ChatParams {
            max_tokens: Some(options.tokens),
            temperature: Some(0.0),
            logit_bias: options.forbid.iter().map(|&id| (id, -100.0)).collect::<BTreeMap<_, _>>(),
            response_format,
            ..ChatParams::default()
        })
    };
    let (plain, held) = (params(None), params(Some(endless())));
    let mut questions = Questions::new(prefix, options.words, seed);
    if prefix == Prefix::Shared {
        // The shared prefix must be cached before it counts: this request is not measured.
        let _ = client.chat_stream(&[questions.next()], &plain, |_| ()).await;
    }
    let started = Instant::now();
    let mut tasks = Vec::new();
    for stream in 0..streams {
        let (client, params) = (client.clone(), if stream < structured { held.clone() } else { plain.clone() });
        let questions: Vec<ChatMessage> = (0..options.requests).map(|_| questions.next()).collect();
        tasks.push(tokio::spawn(async move { ask(&client, &params, questions).await }));
    }
    let mut all = Measured::default();
    for (stream, task) in (0..streams).zip(tasks) {
        let mut one = task.await?;
        if stream < structured && structured < streams {
            (one.first, one.gaps) = Default::default();
        }
        all.tokens += one.tokens;
        all.answers += one.answers;
        all.first.extend(one.first);
        all.gaps.extend(one.gaps);
        all.errors += one.errors;
        all.error = all.error.or(one.error);
    }
    all.seconds = started.elapsed().as_secs_f64();
    Ok(all)
}

/// One stream: the questions in turn.
async fn ask(client: &Client, params: &ChatParams, questions: Vec<ChatMessage>) -> Measured {
    let mut seen = Measured::default();
    for question in questions {
        let asked = Instant::now();
        let mut last = None;
        let answer = client
            .chat_stream(&[question], params, |_| {
                let now = Instant::now();
                match last.replace(now) {
                    None => seen.first.push(now - asked),
                    Some(before) => seen.gaps.push(now - before),
                }
            })
            .await;
        match answer {
            Ok(answer) => {
                seen.tokens += u64::from(answer.usage.completion_tokens);
                seen.answers += 1;
            }
            Err(error) => {
                seen.errors += 1;
                seen.error.get_or_insert(format!("{error:#}"));
            }
        }
    }
    seen
}

/// Makes questions of meaningless words.
struct Questions {
    rng: ChaCha8Rng,
    words: u32,
    /// The prefix that all of them share.
    shared: String,
}

/// Distinct words at the end of questions that share a prefix.
const TAIL: u32 = 8;
const WORDS: &[&str] = &[
    "river", "stone", "light", "winter", "garden", "letter", "silver", "morning", "bridge", "forest", "music",
    "window", "paper", "ocean", "market", "summer", "mountain", "yellow", "kitchen", "circle", "animal", "doctor",
    "engine", "village", "picture", "number", "weather", "history", "island", "teacher", "machine", "shadow",
];

impl Questions {
    fn new(prefix: Prefix, words: u32, seed: [u64; 4]) -> Questions {
        let mut bytes = [0u8; 32];
        for (place, part) in bytes.chunks_exact_mut(8).zip(seed) {
            place.copy_from_slice(&part.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(bytes);
        let shared = match prefix {
            Prefix::Cold => 0,
            Prefix::Shared => words.saturating_sub(TAIL),
        };
        let shared = sentence(&mut rng, shared);
        Questions { rng, words, shared }
    }

    fn next(&mut self) -> ChatMessage {
        let own = if self.shared.is_empty() { self.words } else { TAIL };
        let content = format!("{}{:x} {}", self.shared, self.rng.random::<u32>(), sentence(&mut self.rng, own));
        ChatMessage { role: "user".into(), content }
    }
}

fn sentence(rng: &mut ChaCha8Rng, words: u32) -> String {
    (0..words).filter_map(|_| WORDS.choose(rng)).map(|word| format!("{word} ")).collect()
}

impl Measured {
    fn line(&self, url: &str, setting: Setting, round: u32) -> Value {
        let Setting { streams, structured, prefix } = setting;
        let milliseconds = |times: &[Duration]| {
            let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
            sorted.sort_by(f64::total_cmp);
            let at = |part: f64| quantile(&sorted, part).map(|ms| (ms * 100.0).round() / 100.0);
            json!({"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0)})
        };
        json!({
            "url": url, "streams": streams, "structured": structured, "prefix": prefix.to_string(), "round": round,
            "answers": self.answers, "errors": self.errors, "error": self.error, "tokens": self.tokens,
            "seconds": (self.seconds * 1e3).round() / 1e3,
            "tokens_per_second": (self.tokens as f64 / self.seconds * 10.0).round() / 10.0,
            "first_token_ms": milliseconds(&self.first), "gap_ms": milliseconds(&self.gaps),
        })
    }
}

/// The quantile `part` of the sorted values; `None` if there are none.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn head() -> String {
    format!(
        "{:28} {:>7} {:>10} {:7} {:>9} {:>16} {:>16}\n{:64} {:>16} {:>16}",
        "server", "streams", "structured", "prefix", "tokens/s", "first ms", "gap ms", "", "p50 / p99", "p50 / p99"
    )
}

fn row(line: &Value) -> String {
    let text = |value: &Value| value.as_f64().map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
    let both = |times: &Value| format!("{} / {}", text(&times["p50"]), text(&times["p99"]));
    let mut row = format!(
        "{:28} {:>7} {:>10} {:7} {:>9} {:>16} {:>16}",
        line["url"].as_str().unwrap_or_default(),
        line["streams"].to_string(),
        line["structured"].to_string(),
        line["prefix"].as_str().unwrap_or_default(),
        text(&line["tokens_per_second"]),
        both(&line["first_token_ms"]),
        both(&line["gap_ms"]),
    );
    if let Some(error) = line["error"].as_str() {
        row += &format!("\n  {} errors, the first: {error}", line["errors"]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|part| quantile(&sorted, part)), [Some(50.0), Some(99.0), Some(100.0)]);
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn shared_questions_begin_alike_and_cold_ones_do_not() {
        let pair = |prefix| {
            let mut questions = Questions::new(prefix, 40, [1, 2, 3, 4]);
            [questions.next().content, questions.next().content]
        };
        let same = |[a, b]: [String; 2]| a.split(' ').zip(b.split(' ')).take_while(|(x, y)| x == y).count();
        assert_eq!(same(pair(Prefix::Shared)), 32);
        assert_eq!(same(pair(Prefix::Cold)), 0);
        assert_eq!(pair(Prefix::Cold), pair(Prefix::Cold));
    }
}
