//! The ledger in a file of the data folder, by SQLite. Never knows what a statement is about.

mod schema;
mod snapshot;

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, params_from_iter};

use super::db::{Cells, Db, Engine, News, Purpose, Remains, Take, Value};
use crate::error::{Error, Result};
use crate::files::private_file;

#[cfg(test)]
pub(super) use schema::of_format;
pub(crate) use snapshot::{check, snapshot};

/// The file's name.
pub(super) const FILE: &str = "ledger.sqlite3";

/// Opens the ledger of a folder for writing and for reading; it is made if missing.
pub(super) fn open(dir: &Path) -> Result<(Db, Db)> {
    let path = dir.join(FILE);
    let open = || -> Result<_> {
        // SQLite makes its own files as readable as this one is.
        private_file().open(&path)?;
        let writer = schema::open_writer(&path)?;
        // The entry of a new file must survive a power failure too.
        #[cfg(unix)]
        std::fs::File::open(dir)?.sync_all()?;
        Ok((Db::new(Sqlite(writer)), Db::new(Sqlite(schema::open_reader(&path)?))))
    };
    open().map_err(|e| schema::not_opened(e, dir, &path))
}

/// Opens the ledger of a folder that another process may hold, if it is of this build's format.
pub(super) fn open_reader(dir: &Path) -> Result<Db> {
    Ok(Db::new(Sqlite(checked(&dir.join(FILE))?)))
}

fn checked(path: &Path) -> Result<Connection> {
    let open = || {
        let db = schema::open_reader(path)?;
        schema::check_format(&db)?;
        Ok(db)
    };
    open().map_err(|e: Error| e.context(format!("opening {}", path.display())))
}

/// A connection.
pub(super) struct Sqlite(pub(super) Connection);

impl Engine for Sqlite {
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64> {
        Ok(self.0.prepare_cached(sql)?.execute(params_from_iter(values))? as u64)
    }

    fn rows(&self, sql: &str, values: &[Value<'_>], take: &mut Take<'_>) -> Result<()> {
        let mut select = self.0.prepare_cached(sql)?;
        let mut rows = select.query(params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            if !take(row)? {
                break;
            }
        }
        Ok(())
    }

    fn begin(&self, purpose: Purpose) -> Result<()> {
        self.control(match purpose {
            Purpose::Read => "BEGIN",
            Purpose::Write => "BEGIN IMMEDIATE",
        })
    }

    fn commit(&self, _: News) -> Result<()> {
        self.control("COMMIT")
    }

    fn roll_back(&self) {
        // A full disk or a failed read may have ended it.
        if !self.0.is_autocommit()
            && let Err(error) = self.control("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }

    fn mark(&self) -> Result<()> {
        self.control("SAVEPOINT job")
    }

    fn undo(&self) -> Result<()> {
        self.control("ROLLBACK TO job")
    }

    fn unmark(&self) -> Result<()> {
        self.control("RELEASE job")
    }

    fn last_feedback(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'feedback'";
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }

    /// There is one writer: nothing came before it.
    fn moment(&self) -> Result<i64> {
        Ok(0)
    }

    /// Folds the write-ahead log into the file and empties it, since it held the data too. Another program may keep
    /// reading the ledger for longer than `patience`.
    fn overwrite(&self, patience: Duration) -> Result<Remains> {
        self.0.busy_timeout(patience)?;
        let busy = self.0.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        self.0.busy_timeout(schema::PATIENCE)?;
        match busy {
            Ok(0) => Ok(Remains::Nothing),
            Ok(_) => Ok(Remains::ForNow),
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(Remains::ForNow),
            Err(e) => Err(e.into()),
        }
    }

    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Sqlite {
    fn control(&self, sql: &str) -> Result<()> {
        self.0.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match *self {
            Value::Null => ValueRef::Null,
            Value::Int(value) => ValueRef::Integer(value),
            Value::Real(value) => ValueRef::Real(value),
            Value::Text(value) => ValueRef::Text(value.as_bytes()),
            Value::Blob(value) => ValueRef::Blob(value),
        }))
    }
}

impl Cells for rusqlite::Row<'_> {
    fn int(&self, column: usize) -> Result<Option<i64>> {
        Ok(self.get(column)?)
    }

    fn real(&self, column: usize) -> Result<Option<f64>> {
        Ok(self.get(column)?)
    }

    fn text(&self, column: usize) -> Result<Option<Cow<'_, str>>> {
        let text = self.get_ref(column)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        Ok(text.map(Cow::Borrowed))
    }

    fn blob(&self, column: usize) -> Result<Option<&[u8]>> {
        Ok(self.get_ref(column)?.as_blob_or_null().map_err(rusqlite::Error::from)?)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Self {
        match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Error::busy("another program holds the ledger: nothing was written; try again when it has let go")
            }
            Some(ErrorCode::DiskFull) => Error::io("the disk is full"),
            Some(ErrorCode::OutOfMemory) => Error::nomem("the ledger ran out of memory"),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Error::io(format!("the ledger is damaged or not a database: {e}"))
            }
            _ => Error::io(format!("the ledger: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_another_program_holds_is_busy_and_not_broken() {
        for code in [rusqlite::ffi::SQLITE_BUSY, rusqlite::ffi::SQLITE_LOCKED] {
            let error = Error::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
            assert_eq!(error.code(), crate::error::Code::Busy);
            assert!(error.message().contains("another program holds the ledger"), "{error}");
        }
    }
}
