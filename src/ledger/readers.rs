//! Connections that only read, a few at most: a read takes one, and waits while all are taken. Never writes.

use std::sync::{Condvar, Mutex};

use super::db::Db;
use crate::error::{Error, Result};
use crate::lock::{lock, wait};

/// The connections of an open ledger.
pub(super) struct Readers {
    state: Mutex<State>,
    /// One came back.
    back: Condvar,
}

struct State {
    idle: Vec<Db>,
    taken: usize,
    closed: bool,
}

impl Readers {
    pub(super) fn new(idle: Vec<Db>) -> Self {
        Self { state: State { idle, taken: 0, closed: false }.into(), back: Condvar::new() }
    }

    /// Runs a query on committed data, whose selects all see one moment.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        let mut state = lock(&self.state);
        let db = loop {
            if state.closed {
                return Err(Error::closed("the ledger is closed"));
            }
            match state.idle.pop() {
                Some(db) => break db,
                None => state = wait(&self.back, state, None),
            }
        };
        state.taken += 1;
        drop(state);
        let taken = Taken { readers: self, db: Some(db) };
        let Some(db) = &taken.db else { return Err(Error::closed("the ledger is closed")) };
        db.reading(query)
    }

    /// Ends all connections, once no read uses one; whether this was the first call.
    pub(super) fn close(&self) -> bool {
        let mut state = lock(&self.state);
        let first = !std::mem::replace(&mut state.closed, true);
        while state.taken > 0 {
            state = wait(&self.back, state, None);
        }
        state.idle.clear();
        self.back.notify_all();
        first
    }
}

/// Puts a connection back, after a panic too.
struct Taken<'a> {
    readers: &'a Readers,
    db: Option<Db>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.readers.state);
        state.taken -= 1;
        state.idle.extend(self.db.take());
        self.readers.back.notify_all();
    }
}
