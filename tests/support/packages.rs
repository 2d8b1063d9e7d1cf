//! Where `scripts/setup.sh test` puts the packages of PyPI and npm that tests use. Tests nothing.

use std::path::PathBuf;

/// The folder of the packages, if it holds all of `wanted`. `None`, and a line that says so, where it does not; where
/// they have to be, that is a failure.
pub fn packages(wanted: &[&str]) -> Option<PathBuf> {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let folder = cache.join("apa/clients");
    let missing: Vec<_> = wanted.iter().filter(|name| !folder.join(name).exists()).collect();
    if missing.is_empty() {
        return Some(folder);
    }
    let said = format!("scripts/setup.sh test installs {missing:?} to {}", folder.display());
    let required = ["CI", "APA_TEST_CLIENTS"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    assert!(!required, "{said}");
    eprintln!("SKIPPED: {said}");
    None
}
