//! Decodes requests in batches on one thread that owns every llama.cpp context, and swaps weights under them. Never
//! records or trains: what ended is handed on.
//!
//! A swap is blue/green: the new version is put on an idle context by a thread beside, then takes new requests; running
//! ones stay pinned to theirs, and a context is idle again when its last request ended.

mod core;
mod finished;
mod handle;
mod lane;
mod load;
mod meters;
mod slot;
mod stop;
mod stream;
mod swapper;
mod tuner;
mod weights;

pub use finished::{Finished, OnFailed, OnFinished};
pub use handle::{Options, Scheduler};
pub use load::Load;
pub use meters::{BOUNDS_SECONDS, Durations};
pub use stream::{Event, GenerationStream, Next, Sink, Wake};
pub use weights::{Source, Weights};
