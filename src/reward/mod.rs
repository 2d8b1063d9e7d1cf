//! Turns feedback and reward models into one number. Never trains a policy and never decides what is served.
//!
//! A [`Source`] names where scores come from (a reward model, the application's command or service, a rule); opened, it
//! is a [`Grader`]. A [`RewardModel`] is a [`RewardAdapter`] (a [`Lora`](crate::policy::Lora) and a scalar head on the
//! policy's frozen base, trained on preference pairs by a [`Learner`]) or a [`Classifier`] that others trained; a
//! [`Report`] measures it. [`Terms`] is the weighted sum of scores, ratings and signals.

mod adapter;
mod classifier;
mod command;
mod evidence;
mod formats;
mod learn;
mod members;
mod model;
mod network;
mod pairs;
mod report;
#[cfg(feature = "daemon")]
mod service;
mod settings;
mod source;
mod terms;
mod texts;

pub use adapter::RewardAdapter;
pub use classifier::Classifier;
pub use evidence::{is_above, lower_bound};
pub use formats::{Entry, Judged, Judgements, Refused, read_judgements};
pub use learn::{Ended, Learner, Progress};
pub use model::RewardModel;
pub use network::{Manifest, RewardNetwork};
pub use pairs::{Pair, Tokenizer, split};
pub use report::{Bin, Report, Spread};
pub use settings::Settings;
pub use source::{Asked, Grader, SCHEMES, SCHEMES_EXPLAINED, Source};
pub use terms::{Known, Scales, Terms};
pub use texts::Texts;
