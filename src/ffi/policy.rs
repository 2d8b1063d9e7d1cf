//! Versions of the policy: which one is served, snapshots, and going back. Never makes one.

use std::ffi::c_char;
use std::path::Path;

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::apa_string;
use crate::error::{Error, Result};
use crate::types::PolicyVersion;

/// Writes the version that new requests get. 0 is the initial model.
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_version(
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

/// Brings the newest trained weights into serving now: when this returns, new requests get the newest version, also
/// after a rollback, and training continues from it. Does nothing if they already do, as is the case after every
/// publication unless somebody went back. Running generations finish on their version. If there is something to do, a
/// running training step is aborted, and its ratings keep waiting. `version` (may be NULL) gets the version that is
/// served.
///
/// Errors: `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged, and the present version is served on;
/// `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_sync(
    engine: *const apa_engine,
    version: *mut u64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::put(version, self::engine(engine)?.sync()?.0);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Serves `version` from now on, and trains on from it. Running generations finish on their version; a running training
/// step is aborted, and its ratings keep waiting. Returns when new requests get the version.
///
/// Errors: `APA_ERR_ARG` for an unknown version; `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged;
/// `APA_ERR_CLOSED`.
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

/// Writes the files of `version` into one file, which another data folder with the same base model can restore. An
/// existing file at `path` is replaced; the file is written whole or not at all.
///
/// Errors: `APA_ERR_ARG` for an unknown version, and for 0, which has no files; `APA_ERR_IO` if its files are gone or
/// damaged, or `path` can't be written; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_snapshot(
    engine: *const apa_engine,
    version: u64,
    path: *const c_char,
    path_len: usize,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and `error` NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            engine.snapshot(PolicyVersion(version), Path::new(path_of(path, path_len)?))?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Reads a file of `apa_policy_snapshot` as a new version, whose parent is the active one, and serves it from now on.
/// `version` (may be NULL) gets its number. The file is checked against its own checksums.
///
/// Errors: `APA_ERR_IO` if the file can't be read, is damaged, or is not a snapshot; `APA_ERR_MODEL` if it belongs to
/// another base model (nothing changes then) or can't be served (it is listed then, and the version before is served
/// on); `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_restore(
    engine: *const apa_engine,
    path: *const c_char,
    path_len: usize,
    version: *mut u64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            args::put(version, engine.restore(Path::new(path_of(path, path_len)?))?.0);
            Ok(apa_status::APA_OK)
        })
    }
}

/// # Safety
/// As [`args::text`].
unsafe fn path_of<'a>(path: *const c_char, path_len: usize) -> Result<&'a str> {
    // SAFETY: handed on.
    match unsafe { args::text("path", path, path_len)? } {
        "" => Err(Error::arg("path is empty, expected the name of a file")),
        path if path.contains('\0') => Err(Error::arg("path has a NUL in it, expected the name of a file")),
        path => Ok(path),
    }
}

/// Writes a version as a JSON object: the fields of `apa_policy_list`, its `lineage` (its ancestors, the parent first)
/// and its `verdict`: `ruling` (`promoted`, `refused`, `trial`, `proposed`, `rolled_back`,
/// `unlearned`) and `record` with `reason`, `examination` and `trial`; null for a version that no gate has judged.
///
/// Errors: `APA_ERR_ARG` for an unknown version; `APA_ERR_IO` if the record can't be read; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_policy_show(
    engine: *const apa_engine,
    version: u64,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            put_json(json, &self::engine(engine)?.version(PolicyVersion(version))?)
        })
    }
}

/// Writes all versions as a JSON array, oldest first: `version`, `parent`, `active`, `created` (milliseconds since
/// 1970), `metrics`.
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
