//! The durable record of generations, feedback and versions, in SQLite or Postgres. Never loses what it acknowledged,
//! never changes a row except to mark a rating as used, and never trains or judges.

mod db;
mod export;
mod figures;
mod forget;
#[cfg(test)]
mod forget_tests;
mod handle;
#[cfg(test)]
mod home_tests;
mod import;
#[cfg(all(test, feature = "postgres"))]
mod killed_tests;
mod lease;
mod limits;
mod lock;
mod marks;
mod place;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(test)]
mod process_tests;
mod readers;
mod record;
mod reserve;
mod responses;
mod retention;
mod routes;
mod rows;
#[cfg(test)]
mod rules_tests;
mod said;
mod samples;
#[cfg(all(test, feature = "postgres"))]
mod server_tests;
#[cfg(all(test, feature = "postgres"))]
mod servers_tests;
mod spool;
#[cfg(all(test, feature = "postgres"))]
mod spool_tests;
mod sqlite;
mod steps;
mod tallies;
#[cfg(test)]
mod tests;
mod unlearn;
mod unusable;
mod values;
mod verdicts;
mod waiting;
mod write;
mod writer;

pub use db::News;
pub use export::{Exported, LedgerReader};
pub use figures::{Observed, Sums};
pub use forget::Forgotten;
pub use handle::Ledger;
pub use import::{ImportedAnswer, Judgement};
pub(crate) use lease::Lease;
pub use limits::{ReviewEntry, ReviewVerdict, Rules};
pub use place::Place;
pub use responses::KeptResponse;
pub use retention::Expired;
pub(crate) use routes::MOST_ROUTES;
pub use rows::{AskedPrompt, PairAnswer, StoredFeedback, StoredPair, StoredSample, Use};
pub use spool::Spooled;
pub(crate) use sqlite::{check, snapshot};
pub use steps::Decides;
pub use tallies::Tallies;
pub use unlearn::{Recorded, RecordedBatch, Replayed, Unlearned, Unlearning};
pub use unusable::LeftOut;
pub use write::TrainedBatch;

/// Longest comment and correction, in bytes.
pub const MAX_TEXT: usize = 64 << 10;
/// Most pieces of feedback on one answer.
pub const MAX_SAID: u64 = 1024;
/// Most bytes of comments and corrections on one answer, summed.
pub const MAX_SAID_TEXT: u64 = 1 << 20;
/// Longest name of a signal, in bytes.
pub const MAX_SIGNAL: usize = 64;
/// Longest name of a user, in bytes.
pub const MAX_USER: usize = 256;

const META_MODEL_SHA256: &str = "model_sha256";
const META_MODEL_NAME: &str = "model_name";
