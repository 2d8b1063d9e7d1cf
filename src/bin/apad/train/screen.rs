//! The output of `apad train` while it runs: a bar on a terminal, and a line per step everywhere. Decides nothing.

use std::time::Duration;

use apa::experiment::{Plan, StepRecord};
use apa::shown::shown_lines;
use indicatif::{ProgressBar, ProgressStyle};

use crate::bars;

const HEAD: &str =
    "  seed  step  reward ±    std  KL/resp  tokens  cut off  val.loss  expl.var  grad norm  tok/s  seconds";

pub struct Screen {
    bar: ProgressBar,
    title: String,
    results_to_stderr: bool,
}

impl Screen {
    pub fn new(plan: &Plan, results_to_stderr: bool) -> Self {
        let bar = bars::bar(None);
        let train = &plan.config.train;
        let algorithm = format!("{:?}", train.algorithm).to_uppercase();
        let title = format!(
            "{algorithm}, lambda {}, lr {:e}, {}: {} steps of {} answers, {} seeds",
            train.temperature(),
            train.lr,
            plan.reward.as_ref().map_or_else(|| "no samples".to_owned(), |reward| format!("reward {reward}")),
            plan.steps,
            train.batch,
            plan.seeds.len()
        );
        let total = plan.steps.saturating_mul(plan.seeds.len() as u64);
        bar.set_length(total);
        Self { bar, title, results_to_stderr }
    }

    /// Begins a part of unknown length.
    pub fn wait(&self, what: &str) {
        if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed_precise}") {
            self.bar.set_style(style);
        }
        self.bar.set_message(what.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    /// The first step is about to begin.
    pub fn begin(&self, prompts: usize, dataset: Option<usize>) {
        self.bar.disable_steady_tick();
        if let Ok(style) =
            ProgressStyle::with_template("steps {wide_bar:.cyan/dim} {pos}/{len} {elapsed_precise}, {eta} left")
        {
            self.bar.set_style(style);
        }
        self.bar.reset();
        let fixed = dataset.map(|n| format!(", {n} fixed answers")).unwrap_or_default();
        self.line(&format!("{}; {prompts} prompts{fixed}\n\n{HEAD}", self.title));
    }

    /// A step is done.
    pub fn step(&self, seed: u64, r: &StepRecord) {
        self.line(&line(seed, r));
        if let Some(reason) = &r.skipped {
            self.line(&format!("              nothing learned: {reason}"));
        }
        self.bar.inc(1);
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        let text = shown_lines(text);
        self.bar.suspend(|| if self.results_to_stderr { eprintln!("{text}") } else { println!("{text}") });
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn line(seed: u64, r: &StepRecord) -> String {
    let number = |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
    format!(
        "{seed:>6} {:>5}  {:>6}   {:>6}  {:>7}  {:>6}  {:>6}%  {:>8}  {:>8}  {:>9}  {:>5}  {:>7.1}",
        r.step,
        number(r.reward_mean, 3),
        number(r.reward_std, 3),
        number(r.kl_k1_per_response, 2),
        number(r.length_mean, 1),
        number(r.cut_off.map(|share| 100.0 * share), 0),
        number(r.value_loss, 4),
        number(r.explained_variance, 3),
        number(r.grad_norm, 3),
        number(r.sampled_tokens_per_second, 0),
        r.seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stands_under_its_head() {
        let record =
            StepRecord { step: 12, reward_mean: Some(-0.75), kl_k1_per_response: Some(4.5), ..StepRecord::default() };
        assert_eq!(line(1, &record).chars().count(), HEAD.chars().count(), "{}\n{HEAD}", line(1, &record));
    }
}
