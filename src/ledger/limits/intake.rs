//! Decides whether incoming feedback counts. Never looks at an answer's text.

use rusqlite::Connection;

use super::review::{ReviewVerdict, verdict};
use super::rules::{HOUR_MS, Rules, has_others};
use crate::error::Result;
use crate::ledger::rows;
use crate::system::unix_millis;
use crate::types::NewFeedback;

/// Why feedback that could train does not count, if so.
pub(in crate::ledger) fn left_out(
    db: &Connection,
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
        let counted: u32 = db
            .prepare_cached(
                "SELECT count(*) FROM (SELECT 1 FROM feedback INDEXED BY feedback_of_user
                 WHERE user IS ?1 AND created >= ?2 AND created < ?4 AND teaches = 1 LIMIT ?3)",
            )?
            // Rows written while the clock was ahead belong to no hour that has begun.
            .query_row((&f.user, hour, rules.hourly, hour + rows::signed(HOUR_MS)), |row| row.get(0))?;
        if counted >= rules.hourly {
            return Ok(Some("over the user's limit of this hour"));
        }
    }
    Ok(None)
}

fn is_duplicate(db: &Connection, f: &NewFeedback, content: i64) -> Result<bool> {
    let (rating, correction, signal) = rows::parts(&f.signal);
    let mut earlier = db.prepare_cached(
        "SELECT 1 FROM feedback f JOIN generations g ON g.seq = f.generation
         WHERE f.content = ?1 AND f.teaches = 1 AND f.batch IS NULL AND f.user IS ?2 AND f.rating IS ?3
         AND f.correction IS ?4 AND f.signal IS ?5 AND g.id <> ?6 LIMIT 1",
    )?;
    Ok(earlier.exists((content, &f.user, rating, correction, signal, &f.generation_id.0))?)
}
