//! Versions and features of the library. Never needs an engine.

use std::ffi::c_char;

use super::args;
use super::guard::guard_infallible;

/// The version of this header's interface: major in the high 16 bits, minor in the low 16.
pub const APA_ABI_VERSION: u32 = 0x0001_0002;

/// The interface version of the linked library. A program can use it if the major number equals that of
/// `APA_ABI_VERSION` and the minor number is at least that.
#[unsafe(no_mangle)]
pub extern "C" fn apa_abi_version() -> u32 {
    APA_ABI_VERSION
}

/// The library's own version, `"0.1.0"`; static, NUL-terminated.
#[unsafe(no_mangle)]
pub extern "C" fn apa_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// 1 if the library was built with a feature, else 0 (for an unknown name too). Names: `train`, `log`, `http`
/// (`apa_http_start`), `train-cuda` (training on a CUDA device), `serve-cuda` (serving on one).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_has(feature: *const c_char, feature_len: usize) -> i32 {
    guard_infallible(0, || {
        // SAFETY: readable text, by the header's contract.
        let has = match unsafe { args::bytes("feature", feature, feature_len) } {
            Ok(b"train" | b"log") => true,
            Ok(b"http") => cfg!(feature = "daemon"),
            Ok(b"train-cuda") => cfg!(feature = "train-cuda"),
            Ok(b"serve-cuda") => cfg!(feature = "serve-cuda"),
            _ => false,
        };
        i32::from(has)
    })
}
