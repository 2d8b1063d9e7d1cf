//! Functions of the application that the library calls from its own threads. Never calls one after it was removed.

use crate::lock::{lock, unpoisoned};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a hook.
pub(super) fn running() -> bool {
    RUNNING.get()
}

/// The pointer that is passed to a hook.
#[derive(Clone, Copy)]
pub(super) struct UserData(pub(super) *mut c_void);

// SAFETY: the library never follows it; the header tells the application that hooks run on any thread.
unsafe impl Send for UserData {}

/// Holds one hook, which runs on one thread at a time.
pub(super) struct Slot<F> {
    state: Mutex<State<F>>,
    idle: Condvar,
}

struct State<F> {
    hook: Option<(F, UserData)>,
    running_on: Option<ThreadId>,
}

impl<F: Copy> Slot<F> {
    pub(super) const fn new() -> Self {
        Self { state: Mutex::new(State { hook: None, running_on: None }), idle: Condvar::new() }
    }

    /// Replaces the hook. When this returns, the earlier one is not running and never will, except on this very thread.
    pub(super) fn set(&self, hook: Option<(F, UserData)>) {
        let mut state = self.lock();
        state.hook = hook;
        drop(self.wait_idle(state));
    }

    /// Calls the hook, if there is one. A hook that triggers itself is not called again.
    pub(super) fn run(&self, call: impl FnOnce(F, *mut c_void)) {
        let mut state = self.wait_idle(self.lock());
        let Some((hook, UserData(data))) = state.hook else { return };
        let me = thread::current().id();
        if state.running_on == Some(me) {
            return;
        }
        state.running_on = Some(me);
        drop(state);
        let outer = RUNNING.replace(true);
        call(hook, data);
        RUNNING.set(outer);
        self.lock().running_on = None;
        self.idle.notify_all();
    }

    /// Waits until the hook runs on no other thread.
    fn wait_idle<'a>(&'a self, state: MutexGuard<'a, State<F>>) -> MutexGuard<'a, State<F>> {
        let me = thread::current().id();
        unpoisoned(self.idle.wait_while(state, |state| state.running_on.is_some_and(|other| other != me)))
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn a_hook_taken_back_has_ended_and_does_not_run_again() {
        let slot: Arc<Slot<u32>> = Arc::new(Slot::new());
        slot.set(Some((1, UserData(std::ptr::null_mut()))));
        let (entered, left) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let runner = {
            let (slot, entered, left) = (slot.clone(), entered.clone(), left.clone());
            thread::spawn(move || {
                slot.run(|_, _| {
                    entered.store(true, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(100));
                    left.store(true, Ordering::SeqCst);
                });
            })
        };
        while !entered.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        slot.set(None);
        assert!(left.load(Ordering::SeqCst), "set returned while the hook was running");
        slot.run(|_, _| panic!("a hook that was taken back ran"));
        runner.join().unwrap();
    }

    #[test]
    fn a_hook_may_take_itself_back_and_is_not_nested() {
        let slot: Slot<u32> = Slot::new();
        let calls = AtomicU32::new(0);
        slot.set(Some((1, UserData(std::ptr::null_mut()))));
        slot.run(|_, _| {
            calls.fetch_add(1, Ordering::SeqCst);
            assert!(running());
            slot.run(|_, _| panic!("nested"));
            slot.set(None);
        });
        slot.run(|_, _| panic!("it took itself back"));
        assert_eq!((calls.into_inner(), running()), (1, false));
    }
}
