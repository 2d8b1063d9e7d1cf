//! A policy whose gradients and optimizer steps are computed by a Tinker server: what can be asked of one. Knows no
//! loss; asks nothing again that may have been done.
//!
//! docs/CLUSTER.md says what such a server must do, and what was measured of one.

#[cfg(feature = "daemon")]
mod archive;
#[cfg(feature = "daemon")]
mod http;
#[cfg(feature = "daemon")]
mod link;
#[cfg(feature = "daemon")]
mod wire;

use std::time::Duration;

use crate::error::Result;

/// Tells a call to end: it is asked every now and then.
pub type Cancel<'a> = &'a dyn Fn() -> bool;

/// A sample, as the server reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Tokens before the response; at least one.
    pub prompt: Vec<u32>,
    /// Tokens that are trained on; at least one.
    pub response: Vec<u32>,
}

/// An optimizer step: a gradient for each response token, and AdamW's parameters.
#[derive(Clone, Debug)]
pub struct Step {
    /// The minibatch.
    pub sequences: Vec<Sequence>,
    /// What the server said of their response tokens for the weights that the step starts from, nats.
    pub logprobs: Vec<Vec<f32>>,
    /// d loss / d logprob of the same tokens.
    pub gradient: Vec<Vec<f32>>,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Keeps AdamW's denominator away from zero.
    pub epsilon: f64,
    /// Decoupled.
    pub weight_decay: f64,
}

/// What a server is told when it makes a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Name of the base there; `None` takes the only one that it has.
    pub base: Option<String>,
    /// Rank of the adapter.
    pub rank: u32,
    /// Of the adapter's first weights.
    pub seed: u64,
    /// Tokens of the longest sequence, which is what the weights of each add up to.
    pub longest: u32,
    /// How long one request may take there, its wait for others included.
    pub patience: Duration,
}

/// A policy on a server. After an error its weights there are unknown, and what is there is given up: it has to be
/// opened again.
pub trait Policy: Send + Sync {
    /// Has the policy there be what it was at a checkpoint, or the initial model. Returns whether it had to be made
    /// anew.
    ///
    /// # Errors
    /// `Train` if the server can't be reached or refuses; `Closed` if cancelled.
    fn open(&mut self, at: Option<&str>, cancel: Cancel) -> Result<bool>;

    /// Gives up what is there, so that the next [`Policy::open`] makes it anew.
    fn give_up(&mut self);

    /// Log-probabilities of the response tokens under the policy.
    ///
    /// # Errors
    /// As [`Policy::open`].
    fn logprobs(&mut self, sequences: &[Sequence], cancel: Cancel) -> Result<Vec<Vec<f32>>>;

    /// The same under the initial model.
    ///
    /// # Errors
    /// As [`Policy::open`].
    fn reference(&mut self, sequences: &[Sequence], cancel: Cancel) -> Result<Vec<Vec<f32>>>;

    /// Takes an optimizer step. Returns the gradient's norm, if the server tells it.
    ///
    /// # Errors
    /// As [`Policy::open`].
    fn step(&mut self, step: &Step, cancel: Cancel) -> Result<Option<f64>>;

    /// Saves weights and moments there; returns the checkpoint's name for [`Policy::open`].
    ///
    /// # Errors
    /// As [`Policy::open`].
    fn keep(&mut self, cancel: Cancel) -> Result<String>;

    /// The adapter: these two files of an archive of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Policy::open`].
    fn adapter(&mut self, files: [&str; 2], most: u64, cancel: Cancel) -> Result<[Vec<u8>; 2]>;
}

/// A policy on the server at `url`, which is not asked yet.
///
/// # Errors
/// `Arg` for a key that no header can hold; `Unsupported` in a build without HTTP.
#[cfg(feature = "daemon")]
pub fn policy(url: &str, key: Option<&str>, wanted: Wanted) -> Result<Box<dyn Policy>> {
    Ok(Box::new(link::Link::new(url, key, wanted)?))
}

/// A policy on the server at `url`, which is not asked yet.
///
/// # Errors
/// `Unsupported`: this build has no HTTP.
#[cfg(not(feature = "daemon"))]
pub fn policy(_: &str, _: Option<&str>, _: Wanted) -> Result<Box<dyn Policy>> {
    Err(crate::error::Error::unsupported("this build has no HTTP, so no Tinker server (train.engine)"))
}
