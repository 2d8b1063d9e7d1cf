//! The HTTP service inside an embedding application. Never there without the `daemon` feature.

use std::ffi::c_char;
use std::sync::{Mutex, PoisonError};

use super::args;
use super::engine::{apa_engine, engine};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::{apa_string, string};
use crate::error::{Error, Result};
#[cfg(feature = "daemon")]
use crate::http::Background;

/// What a build without the service has in its place.
#[cfg(not(feature = "daemon"))]
struct Background;

#[cfg(not(feature = "daemon"))]
impl Background {
    fn start(_: crate::Engine, _: &str) -> Result<Self> {
        Err(Error::unsupported("this build has no HTTP service, expected the feature daemon"))
    }
    fn address(&self) -> &'static str {
        ""
    }
    fn stop(&self) -> Result<()> {
        Ok(())
    }
}

/// The service of an engine, if it runs.
#[derive(Default)]
pub(super) struct Service(Mutex<Option<Background>>);

impl Service {
    pub(super) fn stop(&self) -> Result<()> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        running.map_or(Ok(()), |service| service.stop())
    }
}

/// Serves the engine over HTTP, as `apad serve` does, on threads of its own. `address` is `127.0.0.1:8372` or the like,
/// with port 0 for a free one; empty for the option `http.listen`. Returns once it listens; `bound` (may be NULL) gets
/// the address. Beyond loopback it wants keys (option `http.keys`).
///
/// Errors: `APA_ERR_UNSUPPORTED` if the library was built without it (`apa_has("http")`); `APA_ERR_BUSY` if it runs
/// already or the address is taken; `APA_ERR_ARG` for what is no address, or an address beyond loopback without keys;
/// `APA_ERR_IO`; `APA_ERR_CLOSED`.
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
            let mut service = object.service.0.lock().unwrap_or_else(PoisonError::into_inner);
            if service.is_some() {
                return Err(Error::busy("the HTTP service runs already, expected apa_http_stop before"));
            }
            object.check_open()?;
            let started = Background::start((*object).clone(), &address)?;
            if !bound.is_null() {
                args::put(bound, string(&started.address().to_string())?);
            }
            *service = Some(started);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Stops the HTTP service: nothing new is accepted, running answers get 30 seconds. Returns when it has stopped; does
/// nothing if it does not run. A shutdown of the engine stops it too.
///
/// Errors: `APA_ERR_IO` if the service had failed; `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_http_stop(engine: *const apa_engine, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe { guard(error, || self::engine(engine)?.service.stop().map(|()| apa_status::APA_OK)) }
}
