//! Decides whether incoming feedback counts. Never looks at an answer's text.

use super::review::{ReviewVerdict, verdict};
use super::rules::{HOUR_MS, Rules, has_others};
use crate::error::Result;
use crate::ledger::db::Db;
use crate::ledger::rows;
use crate::system::unix_millis;
use crate::types::NewFeedback;

/// Why feedback that could train does not count, if so.
pub(in crate::ledger) fn left_out(
    db: &Db,
    rules: &Rules,
    f: &NewFeedback,
    content: i64,
) -> Result<Option<&'static str>> {
    if let Some(user) = &f.user
        && verdict(db, user)? == Some(ReviewVerdict::Reject)
    {
        return Ok(Some("user rejected"));
    }
    if rules.duplicates_once && is_duplicate(db, f, content)? {
        return Ok(Some("duplicate"));
    }
    if rules.hourly > 0 && has_others(db, f.user.as_deref())? {
        let hour = rows::signed(unix_millis() / HOUR_MS * HOUR_MS);
        // Rows written while the clock was ahead belong to no hour that has begun.
        let (begins, ends, most) = (hour, hour + rows::signed(HOUR_MS), rules.hourly);
        let of_hour = |whose: &str| {
            format!(
                "SELECT count(*) FROM (SELECT 1 FROM feedback INDEXED BY feedback_of_user
                 WHERE created >= ?1 AND created < ?2 AND teaches = 1 AND user {whose} LIMIT ?3) AS counted"
            )
        };
        let counted: i64 = match &f.user {
            Some(user) => db.one(&of_hour("= ?4"), (begins, ends, most, user), |row| row.get(0))?,
            None => db.one(&of_hour("IS NULL"), (begins, ends, most), |row| row.get(0))?,
        };
        if counted >= i64::from(rules.hourly) {
            return Ok(Some("over the user's limit of this hour"));
        }
    }
    Ok(None)
}

fn is_duplicate(db: &Db, f: &NewFeedback, content: i64) -> Result<bool> {
    let (rating, correction, signal) = rows::parts(&f.signal);
    let earlier = "SELECT 1 FROM feedback f JOIN generations g ON g.seq = f.generation
                   WHERE f.content = ?1 AND f.teaches = 1 AND f.batch IS NULL AND f.user IS NOT DISTINCT FROM ?2
                   AND f.rating IS NOT DISTINCT FROM ?3 AND f.correction IS NOT DISTINCT FROM ?4
                   AND f.signal IS NOT DISTINCT FROM ?5 AND g.id <> ?6 LIMIT 1";
    db.exists(earlier, (content, &f.user, rating, correction, signal, &f.generation_id.0))
}
