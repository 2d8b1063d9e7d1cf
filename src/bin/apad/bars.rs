//! The one place on a terminal where progress is drawn, so that log lines and results don't tear it. Decides nothing.

use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

static BARS: LazyLock<MultiProgress> = LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));

/// A bar below those that are there, drawn where stderr is a terminal.
pub fn bar(length: Option<u64>) -> ProgressBar {
    // Hidden until it has its place: drawn before, it would tear the others.
    BARS.add(ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden()))
}

/// Prints while no bar is drawn.
pub fn apart<T>(print: impl FnOnce() -> T) -> T {
    BARS.suspend(print)
}
