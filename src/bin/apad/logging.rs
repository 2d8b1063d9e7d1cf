//! Logs to stderr, as fields. Never a prompt or an answer: nothing logs those.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::{WrongUse, bars};

/// What is logged, and how.
#[derive(Args)]
pub struct Options {
    /// What to log: a level, or a filter like `apa=debug,warn` (default: info for serve and pull, else warn)
    #[arg(long, env = "APAD_LOG", global = true, value_name = "FILTER", help_heading = "Logging")]
    log: Option<String>,
    /// Log lines as JSON
    #[arg(long, env = "APAD_LOG_JSON", global = true, help_heading = "Logging")]
    log_json: bool,
}

impl Options {
    /// Installs the subscriber of this process.
    pub fn start(&self, verbose: bool) -> Result<()> {
        let default = if verbose { "info" } else { "warn" };
        let filter = self.log.as_deref().unwrap_or(default);
        let filter = EnvFilter::try_new(filter).map_err(|e| WrongUse(format!("--log {filter}: {e}")))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Line::default);
        if self.log_json {
            builder.json().init();
        } else {
            builder.with_ansi(std::io::stderr().is_terminal()).init();
        }
        Ok(())
    }
}

/// One line of the log. It is written as a whole, above the bars that are drawn.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody may be reading the log; that must not end what is logged.
        bars::apart(|| drop(std::io::stderr().write_all(&self.0)));
    }
}
