//! The outcome of an answer that ended. Records nothing.

use std::sync::Arc;

use super::stream::Sink;
use crate::error::Result;
use crate::types::Generation;

/// An answer that ended, with the sink to notify once it is recorded.
pub struct Finished {
    /// The generation to record, or the error.
    pub outcome: Result<Arc<Generation>>,
    /// The client's end.
    pub sink: Sink,
}

/// Receives answers that ended. Called on the scheduler's thread, so it must be quick.
pub type OnFinished = Box<dyn FnMut(Finished) + Send>;

/// Receives the name of a thread that panicked, once the scheduler is closed. Called on that thread.
pub type OnFailed = Box<dyn Fn(&str) + Send + Sync>;
