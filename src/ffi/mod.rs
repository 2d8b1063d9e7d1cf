//! The C API of `include/apa.h`, one file a C type. Translates calls to [`crate::Engine`]; never decides anything
//! itself.
//!
//! What every export keeps, settled here once:
//!
//! - A handle is a key of `registry`, never an address: it is looked up, not followed. One that was freed gives
//!   `APA_ERR_CLOSED`, one that never was a handle, or is of another type, gives `APA_ERR_ARG`.
//! - A pointer that is read or written (text, out-parameters) is checked for NULL in `args`; beyond that the caller
//!   keeps what C always asks: text is readable for its length, an out-parameter is writable.
//! - An out-parameter is written on success only, an `apa_error **` on failure only.
//! - Every export runs in `guard`: a panic becomes `APA_ERR_PANIC`.
//!
//! The doc comments of the exports are the header's, so they speak to C.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod args;
mod engine;
mod error;
mod feed;
mod feedback;
mod generation;
mod guard;
mod hook;
mod http;
mod library;
mod log;
mod options;
mod panics;
mod policy;
mod registry;
mod reward;
mod scorer;
mod service;
mod strings;
mod trainer;

pub use args::APA_NTS;
pub use engine::*;
pub use error::*;
pub use feed::*;
pub use feedback::*;
pub use generation::*;
pub use http::*;
pub use library::*;
pub use log::*;
pub use options::*;
pub use policy::*;
pub use reward::*;
pub use strings::*;
pub use trainer::*;
