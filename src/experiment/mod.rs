//! Batch experiments without the daemon: sample, reward, train, record, repeat. The second composition root beside the
//! engine; it serves nobody and keeps no ledger.
//!
//! A [`Plan`] describes the experiment, a [`Lab`] holds what all seeds share, and [`Lab::run`] runs one seed in its
//! folder: `metrics.jsonl` and `samples.jsonl` (a line per step, a line per answer), `adapter.gguf`, and the last
//! checkpoint. A run that was stopped resumes from there, with the same results as without the stop.

mod dataset;
mod folder;
mod lab;
mod order;
mod plan;
mod record;
mod run;
mod thumbs;

pub use dataset::{FixedAnswer, read_dataset};
pub use folder::{ADAPTER_FILE, METRICS_FILE, SAMPLES_FILE, seed_folder};
pub use lab::Lab;
pub use plan::{Input, PLAN_FILE, Plan};
pub use record::StepRecord;
pub use run::Ended;
pub use thumbs::Thumbs;

pub use crate::prompts::{Prompt, read_prompts};
pub use crate::types::PromptText;
