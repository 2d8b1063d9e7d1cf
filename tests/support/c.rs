//! What tests of the C API need: compilers and programs that must end well, text and errors across the boundary. Tests
//! nothing.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr;

use apa::ffi::*;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the header has to be clean under.
pub const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// The shared library that was built with this test.
pub fn shared_library() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    let found = [deps.join("libapa.so"), deps.parent().unwrap().join("libapa.so")].into_iter().find(|p| p.exists());
    found.unwrap_or_else(|| panic!("no libapa.so at {}", deps.display()))
}

pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{errors}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

/// Compiles a C or C++ program against the headers and the shared library.
pub fn compile(compiler: &str, standard: &str, source: &Path, program: &Path) {
    let library = shared_library();
    let folder = library.parent().unwrap();
    let mut gcc = Command::new(compiler);
    gcc.arg(standard)
        .args(STRICT)
        .arg("-O1")
        .arg("-I")
        .arg(Path::new(ROOT).join("include"))
        .arg(source)
        .arg("-o")
        .arg(program);
    gcc.arg(&library).arg(format!("-Wl,--disable-new-dtags,-rpath,{}", folder.display()));
    run(&mut gcc);
}

/// The message of an error, which is freed.
pub fn message(error: *mut apa_error) -> String {
    assert!(!error.is_null(), "no error was written");
    // SAFETY: NUL-terminated until the free.
    let text = unsafe { CStr::from_ptr(apa_error_message(error)) }.to_str().unwrap().to_owned();
    apa_error_free(error);
    text
}

/// The text of a string, which is freed.
pub fn take(string: *mut apa_string) -> String {
    assert!(!string.is_null(), "no string was written");
    // SAFETY: readable for its length and the NUL after it, until the free. There may be other NULs inside.
    let bytes = unsafe { std::slice::from_raw_parts(apa_string_data(string).cast::<u8>(), apa_string_len(string) + 1) };
    assert_eq!(bytes.last(), Some(&0));
    let text = std::str::from_utf8(&bytes[..bytes.len() - 1]).unwrap().to_owned();
    apa_string_free(string);
    text
}

pub fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// New options; the caller frees them.
pub fn options() -> *mut apa_options {
    let mut options = ptr::null_mut();
    // SAFETY: the out-parameter is a local.
    assert_eq!(unsafe { apa_options_new(&raw mut options, ptr::null_mut()) }, apa_status::APA_OK);
    options
}

/// Sets an option from text; the status and, for a failure, its message.
pub fn set(options: *mut apa_options, key: &str, value: &str) -> (apa_status, String) {
    let (key, value, mut error) = (c(key), c(value), ptr::null_mut());
    // SAFETY: terminated text and a local.
    let status = unsafe { apa_options_set(options, key.as_ptr(), APA_NTS, value.as_ptr(), APA_NTS, &raw mut error) };
    (status, if error.is_null() { String::new() } else { message(error) })
}

/// The same from JSON.
pub fn set_json(options: *mut apa_options, key: &str, json: &str) -> (apa_status, String) {
    let mut error = ptr::null_mut();
    let (key_ptr, json_ptr): (*const c_char, *const c_char) = (key.as_ptr().cast(), json.as_ptr().cast());
    // SAFETY: text with its length and a local.
    let status = unsafe { apa_options_set_json(options, key_ptr, key.len(), json_ptr, json.len(), &raw mut error) };
    (status, if error.is_null() { String::new() } else { message(error) })
}
