//! Which tokens of a long answer are credited: answers of up to 200 tokens of a tiny model, whose reward its first
//! tokens earn. Slow, and so run by `make check-credit` alone.

use std::fs;

use serde_json::Value;

use crate::support::bench::{Bench, said};

/// Batches at either end whose means are compared.
const ENDS: usize = 8;

struct Ends {
    first: f64,
    last: f64,
}

/// A run's batches.
struct Run(Vec<Value>);

impl Run {
    /// Trains a fresh tiny model, 16 answers a batch.
    fn new(bench: &Bench, name: &str, reward: &str, more: &[&str]) -> Self {
        let mut apad = bench.apad("train");
        apad.args(["--model", "tiny.gguf", "--prompts", "prompts.jsonl", "--max-new", "200"]);
        apad.args(["--reward", reward, "--out", name, "--steps", "40", "--lr", "3e-3", "--critic-lr", "1e-3"]);
        apad.args(["--checkpoint-every", "40", "--set", "serve.threads=1", "--set", "train.threads=1"]).args(more);
        let done = apad.output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        let text = fs::read_to_string(bench.path(name).join("seed-1/metrics.jsonl")).unwrap();
        Self(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    fn ends(&self, key: &str) -> Ends {
        let mean = |part: &[Value]| part.iter().filter_map(|r| r[key].as_f64()).sum::<f64>() / part.len() as f64;
        Ends { first: mean(&self.0[..ENDS]), last: mean(&self.0[self.0.len() - ENDS..]) }
    }

    fn tell(&self, name: &str) -> (Ends, Ends) {
        let (reward, length, kl) =
            (self.ends("reward_mean"), self.ends("length_mean"), self.ends("kl_exact_per_response"));
        println!(
            "{name:42} reward {:5.2} to {:5.2}, length {:5.1} to {:5.1} tokens, KL {:.2} nats a response",
            reward.first, reward.last, length.first, length.last, kl.last
        );
        (reward, length)
    }
}

#[test]
#[ignore = "minutes: make check-credit"]
fn measure_credit() {
    let bench = Bench::new();
    let prompts: Vec<String> = (0..32).map(|i| format!("{{\"text\": \"the {i}th question is\"}}")).collect();
    fs::write(bench.path("prompts.jsonl"), prompts.join("\n")).unwrap();

    let credits: [(&str, &[&str]); 2] =
        [("token", &["--credit", "token"]), ("response", &["--credit", "response", "--nats-per-reward", "4"])];
    for (name, flags) in credits {
        // A letter of the first half of the alphabet among the first ten characters: about half of the answers.
        let early = Run::new(&bench, &format!("early-{name}"), "regex:(?s)^.{0,9}[a-m]", flags);
        let (reward, length) = early.tell(&format!("{name}: the first ten tokens earn it"));
        assert!(reward.last > reward.first + 0.4, "what the first ten of 200 tokens earned was not learned");
        assert!((length.last / length.first - 1.0).abs() < 0.2, "the length drifted");

        // Nine of ten are liked, for their first character.
        let liked = Run::new(&bench, &format!("liked-{name}"), "regex:(?s)^[^a-z]", flags);
        let (_, length) = liked.tell(&format!("{name}: nine of ten are liked"));
        assert!((length.last / length.first - 1.0).abs() < 0.2, "the length drifted");
    }
}
