//! Versions of the policy: which is served, and going back. Never makes one.

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::apa_string;
use crate::types::PolicyVersion;

/// Writes the version that new requests get. A version that was published is served from then on; there is nothing to be fetched.
/// 0 is the initial model.
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_sync(
    engine: *const apa_engine,
    version: *mut u64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("version", version)?;
            args::put(version, self::engine(engine)?.status().policy_version.0);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Serves `version` from now on, and trains on from it. Running generations end on theirs.
///
/// Errors: `APA_ERR_ARG` for an unknown version; `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_activate(
    engine: *const apa_engine,
    version: u64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            self::engine(engine)?.activate(PolicyVersion(version))?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Activates the version that the active one was trained from; `version` (may be NULL) gets it.
///
/// Errors: `APA_ERR_ARG` if the initial model is active; else as `apa_policy_activate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_rollback(
    engine: *const apa_engine,
    version: *mut u64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::put(version, self::engine(engine)?.rollback()?.0);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Writes all versions as a JSON array, oldest first: `version`, `parent`, `active`, `created` (milliseconds since 1970), `metrics`.
///
/// Errors: `APA_ERR_IO` if the record can't be read; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_list(
    engine: *const apa_engine,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            put_json(json, &self::engine(engine)?.versions()?)
        })
    }
}
