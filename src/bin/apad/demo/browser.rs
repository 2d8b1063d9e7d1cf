//! Opens the page in the desktop's browser, where there is one. Waits for nothing and fails silently: the address is
//! printed too.

use std::io::IsTerminal;
use std::process::{Command, Stdio};

/// Shows `url`, if someone sits before a desktop.
pub fn show(url: &str) {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let desktop = cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY");
    if !desktop || !std::io::stderr().is_terminal() {
        return;
    }
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = Command::new(opener);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut opened) = command.spawn() else { return };
    // Nobody else would take note of its end.
    std::thread::spawn(move || opened.wait());
}
