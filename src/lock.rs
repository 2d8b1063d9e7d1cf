//! Takes locks, poisoned or not: what these locks guard is consistent after every statement, so a panic in another
//! thread is no reason to fail. Never waits for anything but the lock.

use std::sync::{Condvar, LockResult, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks a mutex.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

/// The guard of any other kind of lock.
pub(crate) fn unpoisoned<G>(taken: LockResult<G>) -> G {
    taken.unwrap_or_else(PoisonError::into_inner)
}

/// Releases a mutex until the condition variable is signalled, for at most `time`; `None` waits without limit.
pub(crate) fn wait<'a, T>(on: &Condvar, guard: MutexGuard<'a, T>, time: Option<Duration>) -> MutexGuard<'a, T> {
    match time {
        None => unpoisoned(on.wait(guard)),
        Some(time) => unpoisoned(on.wait_timeout(guard, time)).0,
    }
}
