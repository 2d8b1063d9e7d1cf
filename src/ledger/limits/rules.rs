//! The rules about whose feedback counts, as values, and the two questions about users that come first. Never changes a
//! row.

use std::collections::BTreeSet;

use crate::config::RewardConfig;
use crate::error::Result;
use crate::ledger::db::Db;
use crate::ledger::rows;
use crate::system::unix_millis;
use crate::types::UnixMillis;

/// The hour that the hourly limit counts in.
pub(super) const HOUR_MS: UnixMillis = 3_600_000;

/// Rules about whose feedback counts; the default counts everything. Limits of share and time begin with the second
/// user: where only one person rates, there is nobody to protect. Anonymous feedback counts as one user's.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Most pieces of feedback of one user that count in a clock hour; 0 is no limit.
    pub hourly: u32,
    /// Largest share of one user in a batch; 1 is no limit.
    pub share: f64,
    /// How long feedback that a share leaves out waits before it fills a batch that isn't full without it, in
    /// milliseconds; 0 is for ever.
    pub patience_ms: u64,
    /// How long feedback waits before it is used, in milliseconds.
    pub delay_ms: u64,
    /// Count a user's repeated feedback once while it is pending: the same words about the same answer to the same
    /// prompt.
    pub duplicates_once: bool,
    /// Comparisons with other users after which a user can be flagged; 0 flags nobody.
    pub flag_after: u32,
    /// Share of comparisons that must disagree for a flag.
    pub flag_share: f64,
    /// Named signals that train.
    pub signals: BTreeSet<String>,
    /// Whether corrections become training samples.
    pub corrections: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            hourly: 0,
            share: 1.0,
            patience_ms: 0,
            delay_ms: 0,
            duplicates_once: false,
            flag_after: 0,
            flag_share: 1.0,
            signals: BTreeSet::new(),
            corrections: false,
        }
    }
}

impl Rules {
    /// The rules in the settings.
    ///
    /// # Errors
    /// `Arg` for signals that are not names with weights.
    pub fn new(config: &RewardConfig) -> Result<Self> {
        let signals = config.signal_weights()?.into_iter();
        Ok(Self {
            hourly: config.user_hourly,
            share: config.user_share,
            patience_ms: u64::from(config.user_patience) * 1000,
            delay_ms: u64::from(config.quarantine) * 1000,
            duplicates_once: true,
            flag_after: config.flag_after,
            flag_share: config.flag_share,
            signals: signals.filter(|(_, weight)| *weight != 0.0).map(|(name, _)| name).collect(),
            corrections: config.correction > 0.0,
        })
    }
}

/// Which times are long enough ago. Times in the future are too: they were written while the clock was ahead, and must
/// not wait until then.
#[derive(Clone, Copy)]
pub(super) struct Ripe {
    pub(super) until: i64,
    pub(super) now: i64,
}

impl Ripe {
    /// Feedback received at least `delay_ms` ago. Without a delay, all feedback, whatever the clock says.
    pub(super) fn after(delay_ms: u64) -> Self {
        let now = unix_millis();
        let until = if delay_ms == 0 { i64::MAX } else { rows::signed(now.saturating_sub(delay_ms)) };
        Self { until, now: rows::signed(now) }
    }

    pub(super) fn holds(&self, created: UnixMillis) -> bool {
        let created = rows::signed(created);
        created <= self.until || created > self.now
    }
}

/// Whether all feedback is of one user.
pub(super) fn lone(db: &Db) -> Result<bool> {
    // The first and the last user in the order of names.
    let sql = "SELECT user FROM (SELECT user FROM feedback ORDER BY user LIMIT 1) AS first
               UNION ALL SELECT user FROM (SELECT user FROM feedback ORDER BY user DESC LIMIT 1) AS last";
    let ends: Vec<Option<String>> = db.all(sql, (), |row| row.maybe(0))?;
    Ok(ends.first() == ends.last())
}
