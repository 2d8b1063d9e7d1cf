//! What the tests share: tiny models, engines on them, servers, daemons, commands, the C API in short. Tests nothing.
#![allow(dead_code)]

pub mod adapter;
#[cfg(feature = "daemon")]
pub mod bench;
pub mod c;
pub mod capi;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod engine;
pub mod go;
pub mod installed;
pub mod node;
#[cfg(feature = "daemon")]
pub mod packages;
pub mod python;
pub mod reward;
#[cfg(feature = "daemon")]
pub mod server;
pub mod tiny;
pub mod trainer;
