//! An engine behind the C API on a tiny model, and its calls in short. Tests nothing.

use std::ptr;

use apa::ffi::*;
use serde_json::Value;

use super::c::{message, options, set, take};
use super::tiny::{TOOLS, TinySpec, tiny_model};

/// An open engine on a model of its own. Freed at the end of the test.
pub struct Opened {
    pub engine: *mut apa_engine,
    _dir: tempfile::TempDir,
}

impl Drop for Opened {
    fn drop(&mut self) {
        apa_engine_free(self.engine);
    }
}

pub fn open(settings: &[(&str, &str)]) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny_model(&model, &TinySpec { template: TOOLS, ..TinySpec::new("llama") }).unwrap();
    let options = options();
    let data = dir.path().join("data");
    let paths = [("model", model.to_str().unwrap()), ("data", data.to_str().unwrap())];
    let small =
        [("serve.context", "8192"), ("serve.threads", "1"), ("serve.speculate", "false"), ("train.auto", "false")];
    for (key, value) in paths.iter().chain(&small).chain(settings) {
        assert_eq!(set(options, key, value).0, apa_status::APA_OK, "{key}");
    }
    let (mut engine, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the out-parameters are locals.
    let status = unsafe { apa_engine_open(options, &raw mut engine, &raw mut error) };
    assert!(status == apa_status::APA_OK, "{}", message(error));
    apa_options_free(options);
    Opened { engine, _dir: dir }
}

pub fn try_start(engine: *mut apa_engine, request: &str) -> Result<*mut apa_gen, (apa_status, String)> {
    let (mut generation, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: text with its length and locals.
    let status =
        unsafe { apa_gen_start(engine, request.as_ptr().cast(), request.len(), &raw mut generation, &raw mut error) };
    if status == apa_status::APA_OK { Ok(generation) } else { Err((status, message(error))) }
}

/// A call that writes JSON.
pub fn json(call: impl FnOnce(*mut *mut apa_string, *mut *mut apa_error) -> apa_status) -> Value {
    let (mut text, mut error) = (ptr::null_mut(), ptr::null_mut());
    let status = call(&raw mut text, &raw mut error);
    assert!(status == apa_status::APA_OK, "{status:?}: {}", message(error));
    serde_json::from_str(&take(text)).unwrap()
}
