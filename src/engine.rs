//! The composition root: threads, bounded channels, shutdown, and the loop from rating to new weights. The methods here are
//! what `ffi` and `http` show.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::Result;
use crate::types::*;

/// A serving, learning model. Cheap to clone; every method is safe from any thread.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Prompt tokens; see [`Engine::chat_prompt`] and [`Engine::tokenize`].
    pub prompt: Vec<TokenId>,
    /// How to sample.
    pub sampling: Sampling,
    /// Most tokens to make; the configured default if unset.
    pub max_tokens: Option<u32>,
    /// Strings that end the answer; not part of its text. At most 16.
    pub stop: Vec<String>,
    /// Whom it is for.
    pub user: Option<String>,
}

/// What a generation says while it runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More text, whole codepoints.
    Text(String),
    /// The end; the generation is in the ledger.
    Done(Arc<Generation>),
}

/// The outcome of waiting for an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Something came.
    Event(Event),
    /// Nothing came in the time given; wait again.
    Timeout,
    /// `Done` has been delivered before.
    Finished,
}

/// A running generation. Dropping it cancels what is left of it.
pub struct GenerationStream {}

impl GenerationStream {
    /// Its name.
    pub fn id(&self) -> &GenerationId {
        todo!()
    }

    /// Waits at most `timeout` for the next event (zero polls, `None` waits without limit).
    ///
    /// # Errors
    /// `Closed` if the engine shut down, `Model` if decoding failed; the stream is at its end then.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next> {
        let _ = timeout;
        todo!()
    }

    /// Asks it to end; `Done` still comes, with what there is. From any thread, at any time.
    pub fn cancel(&self) {
        todo!()
    }

    /// Calls `hook` from the engine's threads whenever an event became ready (once at once, if one is already). For event
    /// loops: the hook must be quick and must not call back into the engine.
    pub fn set_wake(&self, hook: Arc<dyn Fn() + Send + Sync>) {
        let _ = hook;
        todo!()
    }
}

/// What came of a training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StepOutcome {
    /// A new version was trained, published and activated.
    Published {
        /// The new version.
        version: PolicyVersion,
        /// What its batch measured.
        metrics: StepMetrics,
    },
    /// Nothing was changed, for the reason given.
    Skipped {
        /// One sentence.
        reason: String,
        /// Ratings that were used up by it.
        consumed: usize,
    },
}

/// The state of an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The base model's name, from its metadata or file name.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// Version that new requests get.
    pub policy_version: PolicyVersion,
    /// Versions that still have running requests, the active one included.
    pub serving_versions: Vec<PolicyVersion>,
    /// Requests being decoded.
    pub running: usize,
    /// Requests waiting.
    pub queued: usize,
    /// Requests completed since the start.
    pub completed: u64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens evaluated since the start.
    pub prompt_tokens: u64,
    /// Weight swaps since the start.
    pub swaps: u64,
    /// The trainer.
    pub trainer: TrainerStatus,
}

/// The state of the trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerStatus {
    /// `off`, `unsupported`, `idle` or `training`.
    pub state: String,
    /// Why it is off or unsupported, or what failed last.
    pub reason: Option<String>,
    /// Ratings not yet used.
    pub pending_ratings: u64,
    /// Ratings that start a step.
    pub batch: u32,
    /// Steps that published a version since the start.
    pub steps: u64,
    /// Steps that were skipped since the start.
    pub skipped: u64,
    /// Optimizer steps dropped because something was not finite, since the start.
    pub dropped_steps: u64,
    /// Measurements of the newest step.
    pub last: Option<StepMetrics>,
}

impl Engine {
    /// Opens the model and the data folder, recovers, and starts the threads.
    ///
    /// # Errors
    /// `Arg` for settings out of range, `Model` for a file that is missing, damaged or of another kind, `Busy` if another
    /// process holds the data folder (its process id is named), `Io` for the disk.
    pub fn open(config: Config) -> Result<Engine> {
        let _ = config;
        Ok(Engine { inner: Arc::new(Inner {}) })
    }

    /// Applies the model's own chat template and tokenizes, ready for [`GenerateRequest::prompt`].
    ///
    /// # Errors
    /// `Unsupported` without a template, `Arg` if the template refuses the messages.
    pub fn chat_prompt(&self, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
        let _ = messages;
        todo!()
    }

    /// Tokenizes plain text, with the model's beginning-of-sequence token where it wants one.
    ///
    /// # Errors
    /// `Arg` if the text is too long to be tokenized.
    pub fn tokenize(&self, text: &str) -> Result<Vec<TokenId>> {
        let _ = text;
        todo!()
    }

    /// The text of tokens; invalid UTF-8 is replaced.
    pub fn detokenize(&self, tokens: &[TokenId]) -> String {
        let _ = tokens;
        todo!()
    }

    /// Queues a generation.
    ///
    /// # Errors
    /// `Arg` for an empty prompt, one longer than the context, or settings out of range; `Busy` if the queue is full;
    /// `Closed` after [`Engine::shutdown`].
    pub fn generate(&self, request: GenerateRequest) -> Result<GenerationStream> {
        let _ = request;
        todo!()
    }

    /// A generation from the ledger.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation(&self, id: &GenerationId) -> Result<Option<Generation>> {
        let _ = id;
        todo!()
    }

    /// Records feedback; it is on disk when this returns.
    ///
    /// # Errors
    /// `Arg` for an unknown generation or a rating outside [-1, 1] or not a number, `Io` if it could not be written.
    pub fn feedback(&self, feedback: NewFeedback) -> Result<FeedbackReceipt> {
        let _ = feedback;
        todo!()
    }

    /// Records that one answer is better than another; it is on disk when this returns.
    ///
    /// # Errors
    /// As [`Engine::feedback`].
    pub fn prefer(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        let _ = (chosen, rejected, user);
        todo!()
    }

    /// Trains on the ratings that are in (at most one batch, even a small one), publishes, and returns when it is served.
    ///
    /// # Errors
    /// `Train` or `Unsupported` with the reason; serving goes on.
    pub fn train_step(&self) -> Result<StepOutcome> {
        todo!()
    }

    /// All versions, oldest first.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        todo!()
    }

    /// Serves `version` from now on; running requests end on theirs. Training goes on from it.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` or `Model` if its files are gone or damaged.
    pub fn activate(&self, version: PolicyVersion) -> Result<()> {
        let _ = version;
        todo!()
    }

    /// Activates the parent of the active version and returns it.
    ///
    /// # Errors
    /// `Arg` if the initial model is active; else as [`Engine::activate`].
    pub fn rollback(&self) -> Result<PolicyVersion> {
        todo!()
    }

    /// A snapshot of the state.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Stops: refuses new requests, cancels running ones, wakes every waiter, ends the threads. Idempotent.
    pub fn shutdown(&self) {
        let _ = &self.inner;
        todo!()
    }
}
