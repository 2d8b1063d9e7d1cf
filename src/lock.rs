//! Takes a lock whatever became of the thread that held it before: what these locks guard is whole after every
//! statement, so a panic elsewhere is no reason to stop here. Never waits for anything but the lock.

use std::sync::{Condvar, LockResult, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Takes a mutex.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

/// What a lock of another kind gives.
pub(crate) fn unpoisoned<G>(taken: LockResult<G>) -> G {
    taken.unwrap_or_else(PoisonError::into_inner)
}

/// Gives a mutex away until the condition is signalled, at most for `time`; `None` waits without limit.
pub(crate) fn wait<'a, T>(on: &Condvar, guard: MutexGuard<'a, T>, time: Option<Duration>) -> MutexGuard<'a, T> {
    match time {
        None => unpoisoned(on.wait(guard)),
        Some(time) => unpoisoned(on.wait_timeout(guard, time)).0,
    }
}
