//! The wrapper of every fallible export: refuses calls from hooks, and turns the outcome into a status and an error.
//! Never lets a panic cross into C.

use super::error::{apa_error, apa_status, report};
use super::hook;
use super::panics::catch;
pub(super) use super::panics::guard_infallible;
use crate::error::{Error, Result};

/// Runs a fallible export. Calls from hooks are refused, since a call could wait for the hook's own thread.
///
/// # Safety
/// `error` is NULL or writable.
pub(super) unsafe fn guard(error: *mut *mut apa_error, body: impl FnOnce() -> Result<apa_status>) -> apa_status {
    // SAFETY: handed on.
    unsafe {
        guard_in_hook(error, || match hook::running() {
            true => Err(Error::arg("called from inside a hook, expected another thread or a later time")),
            false => body(),
        })
    }
}

/// The same for the few calls that hooks may make.
///
/// # Safety
/// `error` is NULL or writable.
pub(super) unsafe fn guard_in_hook(
    error: *mut *mut apa_error,
    body: impl FnOnce() -> Result<apa_status>,
) -> apa_status {
    let outcome = catch(body).and_then(|outcome| outcome);
    // SAFETY: handed on.
    outcome.unwrap_or_else(|e| catch(|| unsafe { report(&e, error) }).unwrap_or(apa_status::APA_ERR_PANIC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::{apa_error_code, apa_error_free, apa_error_message};
    use std::ffi::CStr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{panic, ptr};

    #[test]
    fn a_panic_becomes_an_error_that_says_where() {
        let mut error = ptr::null_mut();
        // SAFETY: `error` is a local.
        let status = unsafe { guard(&raw mut error, || panic!("odd number {}", 3)) };
        assert_eq!((status, apa_error_code(error)), (apa_status::APA_ERR_PANIC, apa_status::APA_ERR_PANIC));
        // SAFETY: NUL-terminated until the free below.
        let message = unsafe { CStr::from_ptr(apa_error_message(error)) }.to_str().unwrap().to_owned();
        assert!(message.contains("guard.rs:") && message.ends_with(": odd number 3"), "{message}");
        apa_error_free(error);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { guard(ptr::null_mut(), || panic!("again")) }, apa_status::APA_ERR_PANIC);
        assert_eq!(guard_infallible(7, || panic!("again")), 7);
    }

    #[test]
    fn a_panic_of_the_application_goes_to_its_own_hook() {
        static SEEN: AtomicU32 = AtomicU32::new(0);
        let before = panic::take_hook();
        panic::set_hook(Box::new(|info| {
            let own = info.payload().downcast_ref::<&str>() == Some(&"the application's");
            SEEN.fetch_add(u32::from(own), Ordering::Relaxed);
        }));
        // Whichever came first, the library's start or the hook.
        assert_eq!(guard_infallible(7, || panic!("the application's, but caught")), 7);
        assert!(panic::catch_unwind(|| panic!("the application's")).is_err());
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
        panic::set_hook(before);
    }
}
