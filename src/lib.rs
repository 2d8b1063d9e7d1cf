//! libapa: serves a language model and keeps aligning it with the people who use it, in one process.
//!
//! A request goes one way: scheduler → ledger → trainer → publish → scheduler. [`Engine`] is the composition root; the
//! stages know only [`types`] and what is below them, never each other.
//!
//! ```no_run
//! use apa::engine::{Event, GenerateRequest, Next};
//! use apa::types::{ChatMessage, NewFeedback, Signal};
//! use apa::{Engine, config::Config};
//!
//! # fn main() -> apa::Result<()> {
//! let engine = Engine::open(Config { model: "base.gguf".into(), data: "data".into(), ..Config::default() })?;
//! let question = ChatMessage { role: "user".into(), content: "Why is the sea salty?".into() };
//! let prompt = engine.chat_prompt(&[question])?;
//! let answer = engine.generate(GenerateRequest { prompt, ..GenerateRequest::default() })?;
//! while let Next::Event(event) = answer.next(None)? {
//!     if let Event::Text(text) = event {
//!         print!("{text}");
//!     }
//! }
//! // On disk when this returns; enough ratings start a training step by themselves.
//! engine.feedback(NewFeedback {
//!     generation_id: answer.id().clone(),
//!     signal: Signal::Rating(1.0),
//!     user: None,
//!     comment: None,
//! })?;
//! println!("served by version {}", engine.status().policy_version);
//! engine.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! | module | its one job |
//! |---|---|
//! | [`types`], [`error`], [`config`] | ids, units and records; one error; settings |
//! | [`gguf`] | files of models and adapters, read within bounds |
//! | [`guide`] | holds answers to a JSON schema or a grammar |
//! | [`llama`] | the only user of llama.cpp |
//! | [`policy`], [`align`], [`optim`] | the differentiable model; the losses, as pure functions; gradients and AdamW |
//! | [`scheduler`], [`ledger`], [`reward`], [`trainer`], [`gate`], [`publish`] | the stages |
//! | [`engine`] | joins them |
//! | [`tinker`] | a server that computes gradients and steps elsewhere |
//! | [`convert`] | models of the Hugging Face hub as GGUF |
//! | [`experiment`], [`doctor`] | joins them for batch experiments; says what this machine can and needs |
//! | [`processor`], [`overwrite`] | what the processor has; keeps a command from writing over what it reads |
//! | [`request`], [`ffi`], `http` | client bodies, the C API, the HTTP service |
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
pub mod convert;
pub mod doctor;
pub mod durations;
pub mod engine;
pub mod error;
pub mod experiment;
pub mod ffi;
mod files;
pub mod forecast;
pub mod gate;
pub mod gguf;
pub mod guide;
#[cfg(feature = "daemon")]
pub mod http;
mod ids;
pub mod ledger;
pub mod llama;
mod lock;
mod members;
pub mod optim;
pub mod overwrite;
pub mod policy;
pub mod processor;
mod prompts;
pub mod publish;
pub mod request;
pub mod reward;
pub mod scheduler;
pub mod shown;
mod system;
pub mod tinker;
pub mod trainer;
pub mod types;
#[cfg(feature = "daemon")]
mod web;

pub use engine::Engine;
pub use error::{Code, Error, Result};
