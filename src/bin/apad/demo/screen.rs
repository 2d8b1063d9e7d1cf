//! The demo's output while it runs: bars on a terminal, log lines elsewhere, and the rows of its table. Decides
//! nothing.

use std::time::Duration;

use apa::shown::shown_lines;
use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

use crate::bars;

/// The demo's output. Results go to stdout (to stderr where stdout is kept for JSON), progress to stderr.
pub struct Screen {
    batches: ProgressBar,
    part: ProgressBar,
    results_to_stderr: bool,
}

impl Screen {
    /// Bars for `batches` batches; drawn only where stderr is a terminal.
    pub fn new(batches: u64, results_to_stderr: bool) -> Self {
        let batch_style =
            ProgressStyle::with_template("batches  {wide_bar:.cyan/dim} {pos:>3}/{len:<3} {elapsed_precise}");
        let batches = bars::bar(Some(batches)).with_style(batch_style.expect("a valid template"));
        Self { batches, part: bars::bar(Some(0)), results_to_stderr }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        let text = shown_lines(text);
        bars::apart(|| if self.results_to_stderr { eprintln!("{text}") } else { println!("{text}") });
    }

    /// Begins a part of `steps` steps; see [`Screen::step`].
    pub fn begin(&self, what: &str, steps: usize) {
        let style = ProgressStyle::with_template("{msg:28} {wide_bar:.green/dim} {pos:>3}/{len:<3} {elapsed_precise}");
        self.part.disable_steady_tick();
        self.part.set_style(style.expect("a valid template"));
        self.restart(what, Some(steps as u64));
    }

    /// Begins a part of unknown length.
    pub fn wait(&self, what: &str) {
        let style = ProgressStyle::with_template("{msg:28} {spinner} {elapsed_precise}");
        self.part.set_style(style.expect("a valid template"));
        self.restart(what, None);
        self.part.enable_steady_tick(Duration::from_millis(120));
    }

    fn restart(&self, what: &str, steps: Option<u64>) {
        self.part.reset();
        if let Some(steps) = steps {
            self.part.set_length(steps);
        }
        self.part.set_message(what.to_owned());
        if self.part.is_hidden() {
            info!(batch = self.batches.position(), steps, "{what}");
        }
    }

    /// One step of the part is done.
    pub fn step(&self) {
        self.part.inc(1);
    }

    /// One batch is done.
    pub fn batch_done(&self) {
        self.batches.inc(1);
    }

    /// Takes the bars away.
    pub fn finish(&self) {
        self.part.finish_and_clear();
        self.batches.finish_and_clear();
    }
}
