//! Decodes requests in batches on one thread that owns every llama.cpp context, and swaps weights under them. Never
//! records or trains: finished answers are passed on.
//!
//! A swap is blue/green: another thread puts the new version on a context of its own, which then takes new requests.
//! Running requests stay pinned to their version, and its context is freed when the last of them has ended.

mod core;
mod finished;
mod handle;
mod lane;
mod load;
mod meters;
mod pace;
mod slot;
mod speculate;
mod stop;
mod stream;
mod swapper;
mod tuner;
mod weights;

pub use finished::{Finished, OnFailed, OnFinished};
pub use handle::{Options, Scheduler};
pub use load::Load;
pub(crate) use slot::took_too_long;
pub use stream::{Event, GenerationStream, Next, Sink, Wake};
pub use weights::{Source, Weights};
