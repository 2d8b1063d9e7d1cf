//! libapa: serves a language model and keeps aligning it with the people who use it, in one process.
//!
//! A request goes one way: scheduler → ledger → trainer → publish → scheduler. [`Engine`] is the composition root.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod align;
pub mod config;
pub mod engine;
pub mod error;
pub mod ffi;
#[cfg(feature = "daemon")]
pub mod http;
pub mod request;
pub mod types;

pub use engine::Engine;
pub use error::{Code, Error, Result};
