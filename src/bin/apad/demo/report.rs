//! What the demo measured, as data and as lines of text. Measures nothing.

use serde::Serialize;

/// Rise of the held-back mean reward that counts as success.
pub const WANTED_RISE: f64 = 0.5;

/// All results of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The base model's file name.
    pub model: String,
    /// The users' taste in words.
    pub taste: String,
    /// Seeds prompts, sampling and adapters.
    pub seed: u64,
    /// The settings of the trainer that matter here, as `key value` pairs.
    pub settings: Vec<(String, String)>,
    /// A row per version.
    pub rows: Vec<Row>,
    /// The held-back prompts, by the first version.
    pub before: Measured,
    /// The same prompts and seeds, by the last version.
    pub after: Measured,
    /// Some of them, side by side.
    pub side_by_side: Vec<Pair>,
    /// Whether the mean reward of held-back prompts rose by at least [`WANTED_RISE`].
    pub reached: bool,
    /// Wall time of the whole demo.
    pub seconds: f64,
}

/// The answers of one version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The version that answered.
    pub version: u64,
    /// Answers that were rated.
    pub answers: usize,
    /// Mean rating.
    pub mean_reward: f64,
    /// KL to the initial model: k1 summed over a response, mean over responses, in nats. Unknown if the trainer
    /// skipped.
    pub kl_per_response: Option<f64>,
    /// Mean answer length, in tokens.
    pub mean_tokens: f64,
    /// Fraction of answers that were cut off.
    pub cut_off: f64,
    /// Wall time of answering and rating.
    pub answer_seconds: f64,
    /// Wall time from the last rating to the next version being served.
    pub train_seconds: f64,
}

/// The held-back prompts, answered by one version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The version that answered.
    pub version: u64,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Mean rating.
    pub mean_reward: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
    /// Mean answer length, in tokens.
    pub mean_tokens: f64,
    /// Fraction of answers that were cut off.
    pub cut_off: f64,
    /// KL to the initial model on these answers, as in [`Row::kl_per_response`].
    pub kl_per_response: Option<f64>,
    /// Mean log-probability a token, in nats, of plain sentences that nobody rated: whether the rest of what the model
    /// knew stayed.
    pub text_logprob: Option<f64>,
}

/// One held-back prompt with both answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// What was asked.
    pub prompt: String,
    /// The first version's answer.
    pub before: Shown,
    /// The last version's answer.
    pub after: Shown,
}

/// An answer as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// Its text.
    pub text: String,
    /// Its length.
    pub tokens: u32,
    /// Its rating.
    pub reward: f64,
}

/// Heads of the growing table.
pub const HEAD: &str = "version   mean reward   KL, nats   tokens   cut off   seconds";

impl Row {
    /// One line of the growing table, under [`HEAD`].
    pub fn line(&self) -> String {
        format!(
            "{:>7}   {:>+11.3}   {:>8}   {:>6.1}   {:>6.0}%   {:>7.1}",
            self.version,
            self.mean_reward,
            kl_text(self.kl_per_response),
            self.mean_tokens,
            100.0 * self.cut_off,
            self.answer_seconds + self.train_seconds,
        )
    }
}

impl Measured {
    /// One line under [`HEAD`].
    pub fn line(&self) -> String {
        format!(
            "{:>7}   {:>+11.3}   {:>8}   {:>6.1}   {:>6.0}%   {} held-back prompts",
            self.version,
            self.mean_reward,
            kl_text(self.kl_per_response),
            self.mean_tokens,
            100.0 * self.cut_off,
            self.prompts,
        )
    }
}

/// A KL with two digits, or a dash.
pub fn kl_text(kl: Option<f64>) -> String {
    kl.map_or_else(|| "-".into(), |kl| format!("{kl:.2}"))
}

impl Report {
    /// How much the held-back mean reward rose.
    pub fn rise(&self) -> f64 {
        self.after.mean_reward - self.before.mean_reward
    }

    /// The last line: what was reached.
    pub fn last_line(&self) -> String {
        let distance = self.after.kl_per_response.map(|kl| format!(", {kl:.1} nats a response from the initial model"));
        let kept = self.before.text_logprob.zip(self.after.text_logprob);
        let kept = kept.map(|(first, last)| format!(", plain text at {first:.2} -> {last:.2} nats a token"));
        format!(
            "{}: mean reward of {} held-back prompts {:+.2} -> {:+.2} (a rise of {:.2}; {WANTED_RISE} wanted), \
             version {} -> {}{}{}, in {} min {:02} s",
            if self.reached { "reached" } else { "NOT reached" },
            self.after.prompts,
            self.before.mean_reward,
            self.after.mean_reward,
            self.rise(),
            self.before.version,
            self.after.version,
            distance.unwrap_or_default(),
            kept.unwrap_or_default(),
            self.seconds as u64 / 60,
            self.seconds as u64 % 60,
        )
    }

    /// The side by side as text, answers on one line each.
    pub fn side_by_side_text(&self) -> String {
        let mut text = String::new();
        for pair in &self.side_by_side {
            text += &format!("\n  {}\n", pair.prompt);
            for (version, shown) in [(self.before.version, &pair.before), (self.after.version, &pair.after)] {
                let answer = shown.text.split_whitespace().collect::<Vec<_>>().join(" ");
                text += &format!(
                    "    version {version:>3} | {:>+5.2} | {:>2} tokens | {answer}\n",
                    shown.reward, shown.tokens
                );
            }
        }
        text
    }
}

/// Mean and standard error of the mean; zeros for an empty slice.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A made-up report for the tests of this module's neighbours.
    pub fn example() -> Report {
        let row = |version, mean_reward, kl| Row {
            version,
            answers: 16,
            mean_reward,
            kl_per_response: kl,
            mean_tokens: 50.0 - version as f64,
            cut_off: 0.5,
            answer_seconds: 3.0,
            train_seconds: 9.25,
        };
        let measured = |version, mean_reward, kl| Measured {
            version,
            prompts: 48,
            mean_reward,
            standard_error: 0.1,
            mean_tokens: 30.0,
            cut_off: 0.25,
            kl_per_response: kl,
            text_logprob: kl.map(|kl| -3.0 - kl / 100.0),
        };
        let shown = |text: &str, reward| Shown { text: text.into(), tokens: 22, reward };
        Report {
            model: "model.gguf".into(),
            taste: "short".into(),
            seed: 1,
            settings: vec![("train.lambda".into(), "0.1".into())],
            rows: vec![row(0, -0.75, Some(0.0)), row(1, -0.5, Some(0.4)), row(2, 0.25, None)],
            before: measured(0, -0.75, Some(0.0)),
            after: measured(3, 0.5, Some(4.5)),
            side_by_side: vec![Pair {
                prompt: "Is 1 < 2?".into(),
                before: shown("Well,\nthat <depends> & more", -1.0),
                after: shown("Yes.", 0.9),
            }],
            reached: true,
            seconds: 372.0,
        }
    }

    #[test]
    fn lines_of_the_table_stand_under_their_heads() {
        for row in example().rows {
            assert_eq!(row.line().chars().count(), HEAD.len(), "{}", row.line());
        }
        assert_eq!(example().rows[0].line(), "      0        -0.750       0.00     50.0       50%      12.2");
    }

    #[test]
    fn the_last_line_says_what_was_reached() {
        let mut report = example();
        assert_eq!(
            report.last_line(),
            "reached: mean reward of 48 held-back prompts -0.75 -> +0.50 (a rise of 1.25; 0.5 wanted), version 0 -> 3, \
             4.5 nats a response from the initial model, plain text at -3.00 -> -3.04 nats a token, in 6 min 12 s"
        );
        report.reached = false;
        assert!(report.last_line().starts_with("NOT reached"));
    }

    #[test]
    fn both_answers_are_shown_on_one_line_each() {
        let text = example().side_by_side_text();
        assert!(text.contains("version   0 | -1.00 | 22 tokens | Well, that <depends> & more\n"), "{text}");
        assert!(text.contains("version   3 | +0.90 | 22 tokens | Yes.\n"), "{text}");
    }

    #[test]
    fn mean_and_error_match_a_case_done_by_hand() {
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((error - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_error(&[]), (0.0, 0.0));
    }
}
