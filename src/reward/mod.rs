//! Feedback and reward models into one scalar. Never trains a policy and never decides what is served.
//!
//! A reward model is a [`Lora`](crate::policy::Lora) and a scalar head on the frozen base of the policy. [`Learner`]
//! teaches it preference pairs, [`Scorer`] judges answers with it, [`Report`] tells how well it does. [`Classifier`] is
//! one that others trained; [`Grader`] is either.

mod classifier;
pub mod command;
mod formats;
mod grader;
mod learn;
mod model;
mod pairs;
mod report;
mod scalar;
mod scorer;
#[cfg(feature = "daemon")]
pub mod service;

pub use classifier::Classifier;
pub use formats::{Entry, Judged, Judgements, Refused, read_judgements};
pub use grader::{Grader, Texts};
pub use learn::{Ended, Learner, Progress, Settings};
pub use model::{Manifest, RewardModel};
pub use pairs::{Pair, Tokenizer, split};
pub use report::{Bin, Report, Spread};
pub use scalar::{Known, Scalar, Scales};
pub use scorer::Scorer;
