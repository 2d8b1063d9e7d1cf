//! `apa_status` and `apa_error`: the outcomes of calls. Never used inside the library, which has its own error.

use std::ffi::c_char;

use super::panics::guard_infallible;
use super::registry::{self, handle};
use super::strings::Text;
use crate::error::{Code, Error};

/// The outcome of a call. The numbers are stable and never reused. Zero is success; positive numbers are outcomes that
/// are not failures and have no `apa_error`; negative numbers are failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum apa_status {
    /// Success.
    APA_OK = 0,
    /// The generation has ended; nothing more will come.
    APA_DONE = 1,
    /// Nothing came within the timeout.
    APA_TIMEOUT = 2,
    /// The generation has ended because it was cancelled.
    APA_CANCELLED = 3,
    /// The caller's input is wrong: an argument, an option, a request, an unknown id.
    APA_ERR_ARG = -1,
    /// The handle has been freed, or the engine has been shut down.
    APA_ERR_CLOSED = -2,
    /// A bounded resource is taken: the queue is full, the data folder is locked.
    APA_ERR_BUSY = -3,
    /// The model file is missing, damaged or of another kind, or it could not be run.
    APA_ERR_MODEL = -4,
    /// Training failed; serving is untouched.
    APA_ERR_TRAIN = -5,
    /// A file, the disk or the record failed.
    APA_ERR_IO = -6,
    /// A function of the application failed.
    APA_ERR_CALLBACK = -7,
    /// This build, model or architecture can't do that.
    APA_ERR_UNSUPPORTED = -8,
    /// Memory ran out.
    APA_ERR_NOMEM = -9,
    /// A bug of the library, caught at the boundary; the message says where. The library stays usable.
    APA_ERR_PANIC = -10,
}

impl From<Code> for apa_status {
    fn from(code: Code) -> Self {
        match code {
            Code::Arg => apa_status::APA_ERR_ARG,
            Code::Closed => apa_status::APA_ERR_CLOSED,
            Code::Busy => apa_status::APA_ERR_BUSY,
            Code::Model => apa_status::APA_ERR_MODEL,
            Code::Train => apa_status::APA_ERR_TRAIN,
            Code::Io => apa_status::APA_ERR_IO,
            Code::Callback => apa_status::APA_ERR_CALLBACK,
            Code::Unsupported => apa_status::APA_ERR_UNSUPPORTED,
            Code::NoMem => apa_status::APA_ERR_NOMEM,
            Code::Panic => apa_status::APA_ERR_PANIC,
        }
    }
}

/// An error: one sentence and its status. Owned by the caller who received it, and freed with `apa_error_free`; it may
/// be used from any thread. It never contains the text of prompts or answers.
pub struct apa_error {
    _opaque: [u8; 0],
}

handle!(apa_error, 1, ErrorObject);

pub(super) struct ErrorObject {
    status: apa_status,
    message: Text,
}

/// Gives `error` to the caller, if wanted, and returns its status.
///
/// # Safety
/// `out` is NULL or writable.
pub(super) unsafe fn report(error: &Error, out: *mut *mut apa_error) -> apa_status {
    let status = apa_status::from(error.code());
    if !out.is_null() {
        // The message may quote input, and a NUL in it would end it early in C.
        let message = error.message().replace('\0', "\u{fffd}");
        let object = ErrorObject { status, message: Text::new(&message) };
        // If no handles are left, there is still the status.
        if let Ok(handle) = registry::insert(object) {
            // SAFETY: not NULL; writable by the caller's contract.
            unsafe { out.write(handle) };
        }
    }
    status
}

/// The status of `error`. `APA_ERR_ARG` for NULL, `APA_ERR_CLOSED` once freed.
#[unsafe(no_mangle)]
pub extern "C" fn apa_error_code(error: *const apa_error) -> apa_status {
    guard_infallible(apa_status::APA_ERR_PANIC, || match registry::get(error) {
        Ok(object) => object.status,
        Err(e) => e.code().into(),
    })
}

/// The message of `error`, NUL-terminated UTF-8, valid until `error` is freed. `""` for NULL or once freed.
#[unsafe(no_mangle)]
pub extern "C" fn apa_error_message(error: *const apa_error) -> *const c_char {
    guard_infallible(c"".as_ptr(), || registry::get(error).map_or(c"".as_ptr(), |object| object.message.as_ptr()))
}

/// Frees `error`. NULL and a second free are harmless.
#[unsafe(no_mangle)]
pub extern "C" fn apa_error_free(error: *mut apa_error) {
    guard_infallible((), || drop(registry::remove(error)));
}
