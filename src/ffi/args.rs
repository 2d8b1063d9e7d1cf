//! Reads and writes through the pointers of a call. Never dereferences NULL.

use std::ffi::{CStr, c_char};
use std::slice;
use std::time::Duration;

use crate::error::{Error, Result};

/// Length of text that ends at its NUL, for any `_len` parameter.
pub const APA_NTS: usize = usize::MAX;

/// The bytes of a text argument. NULL is allowed for an empty one of length 0.
///
/// # Safety
/// `data` is NULL, or readable for `len` bytes (to its NUL if `len` is `APA_NTS`) until the call returns.
pub(super) unsafe fn bytes<'a>(name: &str, data: *const c_char, len: usize) -> Result<&'a [u8]> {
    match (data.is_null(), len) {
        (true, 0) => Ok(&[]),
        (true, _) => Err(Error::arg(format!("{name} is NULL, expected text"))),
        // SAFETY: terminated, by the caller's contract.
        (false, APA_NTS) => Ok(unsafe { CStr::from_ptr(data) }.to_bytes()),
        (false, len) if len > isize::MAX as usize => {
            Err(Error::arg(format!("the length of {name} is {len}, expected a size in memory or APA_NTS")))
        }
        // SAFETY: readable for `len`, by the caller's contract; `len` fits an allocation.
        (false, len) => Ok(unsafe { slice::from_raw_parts(data.cast(), len) }),
    }
}

/// The same, as UTF-8.
///
/// # Safety
/// As [`bytes`].
pub(super) unsafe fn text<'a>(name: &str, data: *const c_char, len: usize) -> Result<&'a str> {
    // SAFETY: handed on.
    let bytes = unsafe { bytes(name, data, len)? };
    std::str::from_utf8(bytes)
        .map_err(|e| Error::arg(format!("{name} is not valid UTF-8 from byte {} on", e.valid_up_to())))
}

/// Refuses a NULL out-parameter before anything is done whose result would be lost.
pub(super) fn required<T>(name: &str, out: *mut T) -> Result<()> {
    if out.is_null() { Err(Error::arg(format!("{name} is NULL, expected where to write the result"))) } else { Ok(()) }
}

/// Writes a result if the caller wants it.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not NULL; writable by the caller's contract.
        unsafe { out.write(value) };
    }
}

/// Converts a timeout; a negative one means no limit.
pub(super) fn timeout(milliseconds: i64) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}
