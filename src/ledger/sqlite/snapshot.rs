//! Copies a ledger that another process may be writing to. Never changes it.

use std::fs::File;
use std::path::Path;

use super::{FILE, checked, schema};
use crate::error::{Error, Result};
use crate::ledger::rows;
use crate::types::PolicyVersion;

/// Copies the ledger of the data folder `from` into the folder `to`, as it is at one moment; what was deleted from it
/// is not copied. Returns the versions on its record.
///
/// # Errors
/// `Io` if there is none, it can't be read, or `to` can't be written; `Unsupported` if it is of another format.
pub(crate) fn snapshot(from: &Path, to: &Path) -> Result<Vec<PolicyVersion>> {
    let reader = checked(&from.join(FILE))?;
    let path = to.join(FILE);
    let copy = || -> Result<Vec<PolicyVersion>> {
        let name = path.to_str().ok_or_else(|| Error::arg("the path is not UTF-8"))?;
        // One reading transaction: whoever writes goes on meanwhile.
        reader.execute("VACUUM INTO ?1", [name])?;
        // SQLite leaves that to us.
        File::open(&path)?.sync_all()?;
        check(to)
    };
    copy().map_err(|e| e.context(format!("copying the ledger to {}", path.display())))
}

/// Checks the whole ledger in a folder that nobody writes to, and returns the versions on its record.
///
/// # Errors
/// `Io` if it is missing or damaged, `Unsupported` if it is of another format.
pub(crate) fn check(folder: &Path) -> Result<Vec<PolicyVersion>> {
    let db = schema::open_reader(&folder.join(FILE))?;
    schema::check_format(&db)?;
    let found: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if found != "ok" {
        return Err(rows::damaged(found));
    }
    let mut versions = db.prepare("SELECT version FROM versions ORDER BY version")?;
    let versions = versions.query_map([], |row| row.get::<_, i64>(0))?;
    versions.map(|version| Ok(PolicyVersion(version?.unsigned_abs()))).collect()
}
