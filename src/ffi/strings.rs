//! `apa_string`: text that the library returns. Never text that it receives.

use std::ffi::c_char;

use super::panics::guard_infallible;
use super::registry::{self, handle};
use crate::error::Result;

/// Text made by the library: UTF-8, with its length, and a NUL after it. Owned by the caller who received it, and freed
/// with `apa_string_free`; it may be used from any thread.
pub struct apa_string {
    _opaque: [u8; 0],
}

handle!(apa_string, 2, Text);

/// Text with a NUL after it; there may be others inside.
pub(super) struct Text(Box<[u8]>);

impl Text {
    pub(super) fn new(text: &str) -> Self {
        Self([text.as_bytes(), b"\0"].concat().into())
    }

    /// Valid as long as `self`.
    pub(super) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    fn len(&self) -> usize {
        self.0.len() - 1
    }
}

/// The handle of a copy of `text`.
pub(super) fn string(text: &str) -> Result<*mut apa_string> {
    registry::insert(Text::new(text))
}

/// The text, NUL-terminated, valid until `string` is freed. `""` for NULL or once freed.
#[unsafe(no_mangle)]
pub extern "C" fn apa_string_data(string: *const apa_string) -> *const c_char {
    guard_infallible(c"".as_ptr(), || registry::get(string).map_or(c"".as_ptr(), |text| text.as_ptr()))
}

/// The length in bytes, without the NUL at the end. 0 for NULL or once freed.
#[unsafe(no_mangle)]
pub extern "C" fn apa_string_len(string: *const apa_string) -> usize {
    guard_infallible(0, || registry::get(string).map_or(0, |text| text.len()))
}

/// Frees `string`. NULL and a second free are harmless.
#[unsafe(no_mangle)]
pub extern "C" fn apa_string_free(string: *mut apa_string) {
    guard_infallible((), || drop(registry::remove(string)));
}
