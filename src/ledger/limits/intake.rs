//! Decides whether incoming feedback counts. Never looks at an answer's text.

use super::review::{ReviewVerdict, known};
use super::rules::{HOUR_MS, Rules};
use crate::error::Result;
use crate::ledger::db::{Asked, Row};
use crate::ledger::rows;
use crate::system::unix_millis;
use crate::types::NewFeedback;

/// What decides whether feedback counts.
pub(in crate::ledger) struct OnRecord {
    /// The last about its user.
    verdict: Option<ReviewVerdict>,
    /// Whether the user has said the same of the same answer, and it waits.
    duplicate: bool,
    /// Whether anyone else has given feedback.
    others: bool,
    /// Feedback of this user's that counts in this hour, as far as the limit.
    of_hour: i64,
}

impl OnRecord {
    /// The one statement that finds it.
    pub(in crate::ledger) fn asked<'a>(rules: &Rules, f: &'a NewFeedback, content: i64) -> Asked<'a> {
        let whose = if f.user.is_some() { "= ?2" } else { "IS NULL" };
        // The sum keeps the index of all that waits out of it, which is longer than that of one content.
        // Rows written while the clock was ahead belong to no hour that has begun.
        let sql = format!(
            "SELECT (SELECT verdict FROM reviews WHERE user = ?2 ORDER BY id DESC LIMIT 1),
             EXISTS (SELECT 1 FROM feedback f JOIN generations g ON g.seq = f.generation
                     WHERE f.content = ?1 AND f.teaches + 0 = 1 AND f.batch IS NULL AND f.user IS NOT DISTINCT FROM ?2
                     AND f.rating IS NOT DISTINCT FROM ?3 AND f.correction IS NOT DISTINCT FROM ?4
                     AND f.signal IS NOT DISTINCT FROM ?5 AND g.id <> ?6),
             EXISTS (SELECT 1 FROM (SELECT user FROM feedback ORDER BY user LIMIT 1) AS first
                     WHERE first.user IS DISTINCT FROM ?2)
             OR EXISTS (SELECT 1 FROM (SELECT user FROM feedback ORDER BY user DESC LIMIT 1) AS last
                        WHERE last.user IS DISTINCT FROM ?2),
             (SELECT count(*) FROM (SELECT 1 FROM feedback INDEXED BY feedback_of_user
                                    WHERE user {whose} AND created >= ?7 AND created < ?8 AND teaches = 1
                                    LIMIT ?9) AS counted)"
        );
        let (rating, correction, signal) = rows::parts(&f.signal);
        let begins = rows::signed(unix_millis() / HOUR_MS * HOUR_MS);
        let values = vec![
            content.into(),
            f.user.as_ref().into(),
            rating.into(),
            correction.into(),
            signal.into(),
            (&f.generation_id.0).into(),
            begins.into(),
            (begins + rows::signed(HOUR_MS)).into(),
            rules.hourly.into(),
        ];
        Asked { sql: sql.into(), values }
    }

    pub(in crate::ledger) fn read(row: &Row<'_>) -> Result<Self> {
        let verdict = row.maybe(0)?.map(known).transpose()?;
        Ok(OnRecord { verdict, duplicate: row.get(1)?, others: row.get(2)?, of_hour: row.get(3)? })
    }

    /// Why feedback that could train does not count, if so.
    pub(in crate::ledger) fn left_out(&self, rules: &Rules) -> Option<&'static str> {
        if self.verdict == Some(ReviewVerdict::Reject) {
            return Some("user rejected");
        }
        if rules.duplicates_once && self.duplicate {
            return Some("duplicate");
        }
        if rules.hourly > 0 && self.others && self.of_hour >= i64::from(rules.hourly) {
            return Some("over the user's limit of this hour");
        }
        None
    }
}
