//! `apa_http_*`: starts and stops the HTTP service inside an embedding application. Never serves itself.

use std::ffi::c_char;

use super::args;
use super::engine::{apa_engine, engine};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::{apa_string, string};

/// Serves the engine over HTTP, as `apad serve` does, on threads of its own. `address` is like `127.0.0.1:8372`, with
/// port 0 for a free one; empty for the option `http.listen`. Returns once it listens; `bound` (may be NULL) gets the
/// address. Beyond loopback, keys are required (option `http.keys`).
///
/// Errors: `APA_ERR_UNSUPPORTED` if the library was built without HTTP (`apa_has("http")`); `APA_ERR_BUSY` if the
/// service is running already or the address is taken; `APA_ERR_ARG` for an invalid address, or one beyond loopback
/// without keys; `APA_ERR_IO`; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_http_start(
    engine: *const apa_engine,
    address: *const c_char,
    address_len: usize,
    bound: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = self::engine(engine)?;
            let address = match args::text("address", address, address_len)? {
                "" => object.config().http.listen.clone(),
                given => given.to_owned(),
            };
            let listening = object.service.start(&object, &address)?;
            if !bound.is_null() {
                args::put(bound, string(&listening)?);
            }
            Ok(apa_status::APA_OK)
        })
    }
}

/// Stops the HTTP service: refuses new connections and gives running answers 30 seconds. Returns when it has stopped;
/// does nothing if it is not running. Shutting the engine down stops it too.
///
/// Errors: `APA_ERR_IO` if the service had failed; `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_http_stop(engine: *const apa_engine, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe { guard(error, || self::engine(engine)?.service.stop().map(|()| apa_status::APA_OK)) }
}
