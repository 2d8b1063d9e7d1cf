//! Batch experiments without the daemon: sample, reward, train, write down, again. The second composition root beside
//! the engine; it serves nobody and keeps no ledger.
//!
//! A [`Plan`] says what is to be done, a [`Lab`] holds what every seed shares, and [`Lab::run`] does one seed in its
//! folder: `metrics.jsonl` and `samples.jsonl` (a line a step, a line an answer), `adapter.gguf`, and the last
//! checkpoint. A run that was stopped goes on from there, and gives what it would have given.

mod dataset;
mod folder;
mod lab;
mod order;
mod plan;
mod record;
mod run;

pub use dataset::{FixedAnswer, read_dataset};
pub use folder::{ADAPTER_FILE, METRICS_FILE, SAMPLES_FILE, seed_folder};
pub use lab::Lab;
pub use plan::{Input, PLAN_FILE, Plan};
pub use record::StepRecord;
pub use run::Ended;

pub use crate::prompts::{Prompt, read_prompts};
pub use crate::types::PromptText;
