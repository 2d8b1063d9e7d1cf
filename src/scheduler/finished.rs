//! What becomes of an answer that ended. Records nothing.

use std::sync::Arc;

use super::stream::Sink;
use crate::error::Result;
use crate::types::Generation;

/// An answer that ended, and the sink that must be told once it is recorded.
pub struct Finished {
    /// The record, or why there is none.
    pub outcome: Result<Arc<Generation>>,
    /// The client's end.
    pub sink: Sink,
}

/// Takes what ended. Called on the scheduler's thread: it must be quick.
pub type OnFinished = Box<dyn FnMut(Finished) + Send>;

/// Is told the name of a thread that panicked, once the scheduler is closed. Called on that thread.
pub type OnFailed = Box<dyn Fn(&str) + Send + Sync>;
