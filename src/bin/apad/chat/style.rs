//! What is beside the talk is dimmed, where a terminal shows it. Prints nothing.

use std::io::IsTerminal;

/// The text, dimmed on a terminal unless `NO_COLOR` is set.
pub fn dim(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty()) || !std::io::stdout().is_terminal();
    if plain { text.to_owned() } else { format!("\x1b[2m{text}\x1b[0m") }
}
