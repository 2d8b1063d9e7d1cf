//! `apa_options`: the settings of an engine, by key. Does not know the keys: `config` does.

use std::ffi::c_char;
use std::sync::Mutex;

use serde_json::Value;

use super::args;
use super::error::{apa_error, apa_status};
use super::guard::{guard, guard_infallible};
use super::registry::{self, handle};
use crate::config::{Builder, Config};
use crate::error::{Error, Result};
use crate::lock::lock;

/// Settings for an engine to be opened. Keys are those of `apad.toml`, with their section: `model`, `data`,
/// `serve.slots`, `train.lambda`. Owned by the caller who made it, and freed with `apa_options_free`; an engine does
/// not refer to it once opened. Safe from any thread.
pub struct apa_options {
    _opaque: [u8; 0],
}

handle!(apa_options, 3, OptionsObject);

/// The settings, in the order they were made.
#[derive(Default)]
pub(super) struct OptionsObject(Mutex<Vec<(String, Setting)>>);

/// Bounds the list, since repeated settings are appended; far more than there are keys.
const MOST_SETTINGS: usize = 1000;

enum Setting {
    Text(String),
    Json(Value),
}

impl OptionsObject {
    /// Adds a setting after checking it.
    fn add(&self, key: &str, setting: Setting) -> Result<()> {
        let mut settings = lock(&self.0);
        if settings.len() == MOST_SETTINGS {
            return Err(Error::arg(format!("{MOST_SETTINGS} options have been set, expected no more")));
        }
        apply(Config::builder(), key, &setting)?;
        settings.push((key.to_owned(), setting));
        Ok(())
    }

    /// The complete settings, checked.
    pub(super) fn config(&self) -> Result<Config> {
        let settings = lock(&self.0);
        let builder = settings.iter().try_fold(Config::builder(), |b, (key, setting)| apply(b, key, setting));
        builder?.build()
    }
}

fn apply(builder: Builder, key: &str, setting: &Setting) -> Result<Builder> {
    match setting {
        Setting::Text(text) => builder.set_text(key, text),
        Setting::Json(Value::Object(all)) if key.is_empty() => {
            all.iter().try_fold(builder, |b, (key, value)| b.set(key, value.clone()))
        }
        Setting::Json(_) if key.is_empty() => {
            Err(Error::arg("without a key the value has to be an object of settings"))
        }
        Setting::Json(value) => builder.set(key, value.clone()),
    }
}

/// Makes empty options: every setting except `model` has a default.
///
/// Errors: `APA_ERR_ARG` if `options` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_options_new(options: *mut *mut apa_options, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("options", options)?;
            args::put(options, registry::insert(OptionsObject::default())?);
            Ok(apa_status::APA_OK)
        })
    }
}

/// Sets `key` from text as on a command line: `base.gguf`, `0.2`, `true`. The last setting of a key counts.
///
/// Errors: `APA_ERR_ARG` for an unknown key (the nearest known one is named) or a value of another kind; the options
/// are as before then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_options_set(
    options: *mut apa_options,
    key: *const c_char,
    key_len: usize,
    value: *const c_char,
    value_len: usize,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and `error` NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = registry::get(options)?;
            let (key, value) = (args::text("key", key, key_len)?, args::text("value", value, value_len)?);
            object.add(key, Setting::Text(value.to_owned()))?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Sets `key` from JSON: `0.2`, `"cpu"`, `{"lambda": 0.2, "batch": 8}` for a whole section. With an empty key the
/// object holds sections. The last setting of a key counts.
///
/// Errors: as `apa_options_set`, and `APA_ERR_ARG` for what is not JSON.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_options_set_json(
    options: *mut apa_options,
    key: *const c_char,
    key_len: usize,
    json: *const c_char,
    json_len: usize,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and `error` NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = registry::get(options)?;
            let (key, json) = (args::text("key", key, key_len)?, args::text("json", json, json_len)?);
            let value =
                serde_json::from_str(json).map_err(|e| Error::arg(format!("the value is not valid JSON: {e}")))?;
            object.add(key, Setting::Json(value))?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Frees `options`. NULL and a second free are harmless.
#[unsafe(no_mangle)]
pub extern "C" fn apa_options_free(options: *mut apa_options) {
    guard_infallible((), || drop(registry::remove(options)));
}
