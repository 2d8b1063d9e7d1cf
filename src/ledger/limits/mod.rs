//! Limits on whose feedback counts, so that nobody bends the model alone. Everything is kept; marks say what trains.
//! Never looks at an answer's text.

mod batch;
mod intake;
mod pairs;
mod review;
mod rules;

pub(super) use batch::{pending_batch, rated};
pub(super) use intake::OnRecord;
pub(super) use pairs::pairs;
pub(super) use review::{Compared, review, reviews};
pub use review::{ReviewEntry, ReviewVerdict};
pub use rules::Rules;
