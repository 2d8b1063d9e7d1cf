//! Catches panics. Never lets one print or cross into C.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::error::{Error, Result};

thread_local! {
    /// How many guards this thread is inside.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Where the panic being caught came from.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs an export that can't fail; `fallback` is returned if it panics all the same.
pub(super) fn guard_infallible<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch(body).unwrap_or(fallback)
}

/// Runs `body` and turns a panic into an error that says where it happened.
pub(super) fn catch<T>(body: impl FnOnce() -> T) -> Result<T> {
    silence_caught_panics();
    DEPTH.set(DEPTH.get() + 1);
    // The library's own state is behind locks that survive a panic (poison is looked through) or poison for good
    // (engine).
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(|payload| {
        let what = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (_, Some(text)) => text.clone(),
            _ => "an unknown panic".to_owned(),
        };
        // The destructor of a foreign payload could panic again.
        std::mem::forget(payload);
        let place = PLACE.take().unwrap_or_else(|| "an unknown place".to_owned());
        Error::panic(format!("a bug in the library, at {place}: {what}"))
    })
}

/// Libraries must not print: panics that end in a guard leave their location for the error instead. Others are reported
/// as before.
fn silence_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| match DEPTH.get() {
            0 => others(info),
            _ => drop(PLACE.replace(info.location().map(ToString::to_string))),
        }));
    });
}
