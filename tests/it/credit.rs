//! Which tokens of a long answer are credited: answers of up to 200 tokens of a tiny model, whose reward its first
//! tokens earn, beside answers that end after those. Slow, and so run by `make check-credit` alone.

use std::fs;

use serde_json::Value;

use crate::support::bench::{Bench, said};

/// Batches at either end whose means are compared.
const ENDS: usize = 8;
/// Batches of a run, of 16 answers each.
const STEPS: &str = "80";
/// The same where an answer is credited as a whole: what its first tokens earn is then said of all of them.
const STEPS_BY_RESPONSE: &str = "240";
/// The random model spreads a token's probability over all of its vocabulary, where nothing is seen twice. At this
/// temperature it is nearly as sure of a token as a language model.
const TEMPERATURE: &str = "0.4";
/// A letter of the first half of the alphabet among the first ten characters: about half of the answers. Rewards are 1
/// and -1.
const EARLY: &str = "regex:(?s)^.{0,9}[a-m]";
/// More than nine of ten are liked, for their first character: they may not come to be liked less, but for chance.
const LIKED: &str = "regex:(?s)^[^a-z]";

struct Ends {
    first: f64,
    last: f64,
}

/// What a run's first and last batches were like.
struct Run {
    reward: Ends,
    length: Ends,
    kl: f64,
}

impl Run {
    /// Trains a fresh tiny model on answers of at most so many tokens, and tells what came of it.
    fn new(bench: &Bench, name: &str, reward: &str, (tokens, steps): (&str, &str), more: &[&str]) -> Self {
        let mut apad = bench.apad("train");
        apad.args(["--model", "tiny.gguf", "--prompts", "prompts.jsonl", "--max-new", tokens, "--reward", reward]);
        apad.args(["--out", name, "--steps", steps, "--temperature", TEMPERATURE, "--lr", "3e-3"]);
        apad.args(["--critic-lr", "1e-3", "--checkpoint-every", steps]);
        apad.args(["--set", "serve.threads=1", "--set", "train.threads=1"]).args(more);
        let done = apad.output().unwrap();
        assert!(done.status.success(), "{}", said(&done));
        let text = fs::read_to_string(bench.path(name).join("seed-1/metrics.jsonl")).unwrap();
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mean = |part: &[Value], key: &str| {
            let values: Vec<f64> = part.iter().filter_map(|record| record[key].as_f64()).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let last = &records[records.len() - ENDS..];
        let ends = |key: &str| Ends { first: mean(&records[..ENDS], key), last: mean(last, key) };
        let (reward, length) = (ends("reward_mean"), ends("length_mean"));
        let kl = mean(last, "kl_exact_per_response");
        println!(
            "{name:16} reward {:5.2} to {:5.2}, length {:5.1} to {:5.1} tokens, KL {kl:.2} nats a response, critic \
             believed {:.2}",
            reward.first,
            reward.last,
            length.first,
            length.last,
            mean(last, "critic_trust"),
        );
        Self { reward, length, kl }
    }

    /// What speaks against the run: too little learned, the length drifted, the budget left.
    fn faults(&self, name: &str, least_gain: f64) -> Vec<String> {
        let (gain, drift) = (self.reward.last - self.reward.first, self.length.last / self.length.first - 1.0);
        let mut faults = Vec::new();
        if gain.is_nan() || gain <= least_gain {
            faults.push(format!("{name}: the reward rose by {gain:.2}, expected {least_gain} at least"));
        }
        if drift.is_nan() || drift.abs() >= 0.2 {
            faults.push(format!("{name}: the length drifted by {:.0}%", 100.0 * drift));
        }
        if self.kl.is_nan() || self.kl > 10.0 {
            faults.push(format!("{name}: {} nats a response are over the budget", self.kl));
        }
        faults
    }
}

#[test]
#[ignore = "minutes: make check-credit"]
fn measure_credit() {
    let bench = Bench::new();
    let prompts: Vec<String> = (0..32).map(|i| format!("{{\"text\": \"the {i}th question is\"}}")).collect();
    fs::write(bench.path("prompts.jsonl"), prompts.join("\n")).unwrap();

    // Every token of these counts: what they don't learn, no credit could teach.
    let mut faults = Run::new(&bench, "ten", EARLY, ("10", STEPS), &[]).faults("ten", 0.4);
    let credits: [(&str, &str, &[&str]); 2] = [
        ("token", STEPS, &["--credit", "token"]),
        ("response", STEPS_BY_RESPONSE, &["--credit", "response", "--nats-per-reward", "4"]),
    ];
    for (credit, steps, flags) in credits {
        for (what, reward, least_gain) in [("early", EARLY, 0.4), ("liked", LIKED, -0.15)] {
            let name = format!("{what}-{credit}");
            faults.extend(Run::new(&bench, &name, reward, ("200", steps), flags).faults(&name, least_gain));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
