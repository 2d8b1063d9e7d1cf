//! Progress of one download: a bar on a terminal, log lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

use crate::bars;

/// Counts bytes.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    logged: u64,
}

impl Progress {
    /// Of `total` bytes; drawn on stderr.
    pub fn new(name: &str, total: u64) -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: bars::bar(Some(total)).with_style(style).with_message(name.to_owned()),
            name: name.to_owned(),
            logged: 0,
        }
    }

    /// `bytes` of the file are there now.
    pub fn at(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
        let total = self.bar.length().unwrap_or(0);
        if self.bar.is_hidden() && bytes - self.logged.min(bytes) >= total / 10 {
            self.logged = bytes;
            tracing::info!(model = %self.name, bytes, total, "fetching");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
