//! libapa: serves a language model and keeps aligning it with the people who use it, in one process.
//!
//! A request goes one way: scheduler → ledger → trainer → publish → scheduler. [`Engine`] is the composition root.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

// Test support is compiled into both the unit tests and the integration tests, and names the crate by its name.
#[cfg(test)]
extern crate self as apa;
#[cfg(test)]
#[path = "../tests/support/tiny.rs"]
mod tiny;

pub mod align;
pub mod config;
pub mod engine;
pub mod error;
pub mod ffi;
pub mod gguf;
#[cfg(feature = "daemon")]
pub mod http;
pub mod ledger;
pub mod llama;
pub mod policy;
pub mod publish;
pub mod request;
pub mod scheduler;
pub mod trainer;
pub mod types;

pub use engine::Engine;
pub use error::{Code, Error, Result};
