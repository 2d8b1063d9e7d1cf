//! `apad train --compare`: experiments side by side, summed up and drawn over each other. Runs nothing.

use std::path::Path;

use anyhow::{Context, Result};
use apa::experiment::StepRecord;
use apa::overwrite::check_target_folder;
use serde_json::{Value, json};

use super::curves;
use super::group::Group;

/// Final steps whose mean reward stands in a summary.
const LAST: usize = 5;

/// Draws the experiments in `dirs` into `out`.
pub fn run(dirs: &[std::path::PathBuf], out: &Path, json: bool) -> Result<()> {
    let groups = dirs.iter().map(|dir| Group::read(dir)).collect::<Result<Vec<_>>>()?;
    check_target_folder(out, &curves::FILES, &[])?;
    std::fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    curves::write(out, &groups)?;
    let summaries: Vec<Value> = groups.iter().map(summary).collect();
    if json {
        println!("{}", crate::json_text(&json!({"out": out, "experiments": summaries}))?);
        return Ok(());
    }
    println!("experiment            seed  steps  samples  reward, first  last {LAST}  KL/resp, last {LAST}  seconds");
    for group in &groups {
        for (seed, records) in &group.seeds {
            let s = Summary::of(records);
            println!(
                "{:20} {seed:>5}  {:>5}  {:>7}  {:>13}  {:>6}  {:>15}  {:>7.1}",
                group.name,
                records.len(),
                s.samples,
                number(s.first_reward),
                number(s.last_reward),
                number(s.last_kl),
                s.seconds
            );
        }
    }
    println!("curves: {}", out.join("curves.png").display());
    Ok(())
}

fn number(x: Option<f64>) -> String {
    x.map_or_else(|| "-".into(), |x| format!("{x:.3}"))
}

/// The results of an experiment, for programs.
pub fn summary(group: &Group) -> Value {
    let train = &group.plan.config.train;
    let seeds: Vec<Value> = group.seeds.iter().map(|(seed, records)| Summary::of(records).json(*seed)).collect();
    json!({
        "name": group.name,
        "algorithm": train.algorithm,
        "lambda": train.temperature(),
        "credit": train.credit,
        "nats_per_reward": train.nats_per_reward,
        "lr": train.lr,
        "critic_lr": train.critic_lr,
        "reward": group.plan.reward,
        "planned_steps": group.plan.steps,
        "seeds": seeds,
    })
}

struct Summary {
    steps: usize,
    samples: u64,
    first_reward: Option<f64>,
    last_reward: Option<f64>,
    last_kl: Option<f64>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

impl Summary {
    fn of(records: &[StepRecord]) -> Self {
        let last = &records[records.len().saturating_sub(LAST)..];
        // In a run on fixed answers, not every step has samples.
        let mean = |of: fn(&StepRecord) -> Option<f64>| {
            let values: Vec<f64> = last.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        Self {
            steps: records.len(),
            samples: records.last().map_or(0, |r| r.samples),
            first_reward: records.first().and_then(|r| r.reward_mean),
            last_reward: mean(|r| r.reward_mean),
            last_kl: mean(|r| r.kl_k1_per_response),
            seconds: records.iter().map(|r| r.seconds).sum(),
            peak_memory_bytes: records.iter().filter_map(|r| r.peak_memory_bytes).max(),
        }
    }

    fn json(&self, seed: u64) -> Value {
        json!({
            "seed": seed,
            "steps": self.steps,
            "samples": self.samples,
            "first_reward": self.first_reward,
            "last_reward": self.last_reward,
            "last_kl_k1_per_response": self.last_kl,
            "averaged_steps": LAST.min(self.steps),
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        })
    }
}
