//! What the ledger asks of a database: statements, rows, transactions; each engine answers it. The statements are the
//! same for all: in SQLite's words, as far as Postgres has a translation. Never knows a table.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

pub(super) use super::values::{Cells, Row, Value, Values, list};
use crate::error::{Error, Result};

/// Takes a row, and says whether it wants the next one.
pub(super) type Take<'a> = dyn FnMut(&Row<'_>) -> Result<bool> + 'a;

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// All its selects see one moment.
    Read,
    /// No other writes meanwhile, whatever process it is in.
    Write,
}

/// A statement that has rows, with its values.
pub(super) struct Asked<'a> {
    pub(super) sql: Cow<'a, str>,
    pub(super) values: Vec<Value<'a>>,
}

/// Takes a row of one of several statements.
pub(super) type TakeOf<'a> = dyn FnMut(usize, &Row<'_>) -> Result<()> + 'a;

/// A connection to a database. One transaction at a time, with at most one mark in it.
pub(super) trait Engine: Send {
    /// Runs a statement, and returns how many rows it changed.
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64>;
    /// Runs a statement that has rows. `take` may run others.
    fn rows(&self, sql: &str, values: &[Value<'_>], take: &mut Take<'_>) -> Result<()>;
    /// Runs statements of which none changes what another one reads, if that is faster at once. `take` runs no others.
    fn rows_of(&self, asked: &[Asked<'_>], take: &mut TakeOf<'_>) -> Result<()> {
        asked
            .iter()
            .enumerate()
            .try_for_each(|(i, one)| self.rows(&one.sql, &one.values, &mut |row| take(i, row).map(|()| true)))
    }
    fn begin(&self, purpose: Purpose) -> Result<()>;
    /// Commits, with what is told to other servers; what was written is on disk then.
    fn commit(&self, news: News) -> Result<()>;
    /// Ends a transaction that failed. One that has ended already is no error.
    fn roll_back(&self);
    /// Marks where [`Engine::undo`] goes back to.
    fn mark(&self) -> Result<()>;
    /// Undoes what was written since the mark; an error if the whole transaction is lost.
    fn undo(&self) -> Result<()>;
    /// Takes the mark away.
    fn unmark(&self) -> Result<()>;
    /// The highest number that a piece of feedback ever had.
    fn last_feedback(&self) -> Result<i64>;
    /// Numbers writing transactions in the order in which they are committed, where there are other servers.
    fn moment(&self) -> Result<i64>;
    /// Overwrites what was deleted wherever a copy of it is left.
    fn overwrite(&self, patience: Duration) -> Result<Remains>;
    /// For tests of one engine.
    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any;
}

/// What a commit changed that all servers of a ledger want to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// By how much the number of answers with waiting feedback grew.
    pub waiting: i64,
    /// A version was recorded, activated or judged.
    pub versions: bool,
}

/// What is left of deleted data.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    Nothing,
    /// A copy that can't be overwritten yet.
    ForNow,
    /// What only the database's operator can overwrite.
    Beyond,
}

/// What is heard of other servers.
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// News, and the moment of their commit.
    News(News, i64),
    /// Nobody knows what there was meanwhile.
    Missed,
}

/// What a transaction notes until it is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) news: News,
    /// Answers with waiting feedback, but for what `news` says, if they were counted, and the moment.
    pub(super) counted: Option<(i64, i64)>,
}

/// A database as the ledger uses it.
pub(super) struct Db {
    engine: Box<dyn Engine>,
    /// Of the transaction under way.
    noted: Cell<Noted>,
}

impl Db {
    pub(super) fn new(engine: impl Engine + 'static) -> Self {
        Self { engine: Box::new(engine), noted: Cell::default() }
    }

    /// Runs a statement, and returns how many rows it changed.
    pub(super) fn execute(&self, sql: &str, values: impl Values) -> Result<u64> {
        values.with(|values| self.engine.execute(sql, values))
    }

    /// What `read` makes of each row.
    pub(super) fn all<T>(
        &self,
        sql: &str,
        values: impl Values,
        mut read: impl FnMut(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        self.each(sql, values, |row| {
            found.push(read(row)?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// What `read` makes of the first row, if there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        values: impl Values,
        read: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let (mut found, mut read) = (None, Some(read));
        self.each(sql, values, |row| {
            found = read.take().map(|read| read(row)).transpose()?;
            Ok(false)
        })?;
        Ok(found)
    }

    /// The same of a statement that has a row.
    pub(super) fn one<T>(&self, sql: &str, values: impl Values, read: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T> {
        self.first(sql, values, read)?.ok_or_else(|| Error::io("the ledger: a row is missing"))
    }

    /// Whether there is a row.
    pub(super) fn exists(&self, sql: &str, values: impl Values) -> Result<bool> {
        Ok(self.first(sql, values, |_| Ok(()))?.is_some())
    }

    /// Gives rows to `take` until it wants no more.
    pub(super) fn each(
        &self,
        sql: &str,
        values: impl Values,
        mut take: impl FnMut(&Row<'_>) -> Result<bool>,
    ) -> Result<()> {
        values.with(|values| self.engine.rows(sql, values, &mut take))
    }

    /// What `read` makes of the first row of each of several statements, none of which changes what another one reads.
    pub(super) fn first_of_each<T>(
        &self,
        asked: &[Asked<'_>],
        mut read: impl FnMut(usize, &Row<'_>) -> Result<T>,
    ) -> Result<Vec<Option<T>>> {
        let mut found: Vec<Option<T>> = asked.iter().map(|_| None).collect();
        self.engine.rows_of(asked, &mut |i, row| {
            if found[i].is_none() {
                found[i] = Some(read(i, row)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Gives the rows of several such statements to `take`.
    pub(super) fn each_of(&self, asked: &[Asked<'_>], take: &mut TakeOf<'_>) -> Result<()> {
        self.engine.rows_of(asked, take)
    }

    /// Runs selects that see one moment.
    pub(super) fn reading<T>(&self, work: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        self.engine.begin(Purpose::Read)?;
        let open = Open(self);
        let found = work(self)?;
        open.commit()?;
        Ok(found)
    }

    /// Writes all that `work` does or nothing, and returns what it noted.
    pub(super) fn writing(&self, work: impl FnOnce(&Db) -> Result<()>) -> Result<Noted> {
        self.noted.take();
        self.engine.begin(Purpose::Write)?;
        let open = Open(self);
        work(self)?;
        open.commit()?;
        Ok(self.noted.take())
    }

    /// Does a part of what is being written, or nothing of it. The outer error is that of the whole.
    pub(super) fn attempt<T>(&self, work: impl FnOnce(&Db) -> Result<T>) -> Result<Result<T>> {
        self.engine.mark()?;
        let before = self.noted.get();
        let done = work(self);
        if let Err(error) = &done {
            self.noted.set(before);
            // Nothing of the whole is written then, and this says why.
            self.engine.undo().map_err(|_| error.clone())?;
        }
        self.engine.unmark()?;
        Ok(done)
    }

    /// Notes that so many more answers have feedback waiting, once this is committed.
    pub(super) fn note_waiting(&self, more: i64) {
        let mut noted = self.noted.get();
        noted.news.waiting += more;
        self.noted.set(noted);
    }

    /// Notes a change of versions or verdicts.
    pub(super) fn note_versions(&self) {
        let mut noted = self.noted.get();
        noted.news.versions = true;
        self.noted.set(noted);
    }

    /// Notes how many answers have feedback waiting now.
    pub(super) fn note_count(&self, count: i64) -> Result<()> {
        let moment = self.engine.moment()?;
        let mut noted = self.noted.get();
        noted.counted = Some((count - noted.news.waiting, moment));
        self.noted.set(noted);
        Ok(())
    }

    /// The highest number that a piece of feedback ever had.
    pub(super) fn last_feedback(&self) -> Result<i64> {
        self.engine.last_feedback()
    }

    /// Overwrites what was deleted wherever a copy of it is left.
    pub(super) fn overwrite(&self, patience: Duration) -> Result<Remains> {
        self.engine.overwrite(patience)
    }

    #[cfg(test)]
    pub(super) fn engine<E: 'static>(&self) -> &E {
        self.engine.as_any().downcast_ref().unwrap()
    }
}

/// A transaction that is rolled back unless it is committed.
struct Open<'a>(&'a Db);

impl Open<'_> {
    fn commit(self) -> Result<()> {
        let Db { engine, noted } = self.0;
        engine.commit(noted.get().news)?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.engine.roll_back();
    }
}
