//! What the tests share: tiny models, engines on them, servers, daemons, commands, the C API in short. Tests nothing.
#![allow(dead_code)]

pub mod adapter;
#[cfg(feature = "daemon")]
pub mod bench;
pub mod c;
pub mod capi;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod device;
pub mod document;
pub mod engine;
pub mod go;
#[cfg(feature = "daemon")]
pub mod gptj;
pub mod installed;
pub mod node;
#[cfg(feature = "daemon")]
pub mod packages;
#[cfg(feature = "postgres")]
#[path = "../../src/ledger/server_tests.rs"]
mod postgres_server;
pub mod python;
pub mod reward;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
pub mod tinker;
pub mod tiny;
pub mod trainer;

use std::path::Path;

/// The URL of a new database, gone with this process. `None`, and a line that says so, without Debian's Postgres.
#[cfg(feature = "postgres")]
pub fn database() -> Option<String> {
    Some(postgres_server::shared()?.database())
}

/// Whether any file of the folder holds these bytes.
pub fn on_disk(dir: &Path, words: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return on_disk(&path, words);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(words.len()).any(|window| window == words)
    })
}
