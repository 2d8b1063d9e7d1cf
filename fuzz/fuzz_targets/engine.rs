//! Every call of an engine that takes bytes, on a tiny model: what llama.cpp would assert on has to be an error before it gets there.
#![no_main]

#[path = "../../tests/support/tiny.rs"]
mod tiny;

use std::ptr;
use std::sync::OnceLock;

use apa::ffi::*;
use tiny::{TinySpec, tiny_model};

struct Opened {
    engine: *mut apa_engine,
    dir: tempfile::TempDir,
}
// SAFETY: handles of the C API are safe from any thread.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

fn opened() -> &'static Opened {
    static OPENED: OnceLock<Opened> = OnceLock::new();
    OPENED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let model = dir.path().join("tiny.gguf");
        tiny_model(&model, &TinySpec::new("llama")).expect("a model");
        let settings = serde_json::json!({
            "model": model, "data": dir.path().join("data"), "serve": {"context": 512, "threads": 1},
            "train": {"auto": false, "threads": 1},
        })
        .to_string();
        let (mut options, mut engine) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: text with its length and locals.
        unsafe {
            apa_options_new(&raw mut options, ptr::null_mut());
            apa_options_set_json(options, ptr::null(), 0, settings.as_ptr().cast(), settings.len(), ptr::null_mut());
            let status = apa_engine_open(options, &raw mut engine, ptr::null_mut());
            assert_eq!(status, apa_status::APA_OK);
        }
        Opened { engine, dir }
    })
}

/// Starts a generation and pulls what comes at once.
fn generate(engine: *mut apa_engine, request: &[u8]) -> apa_status {
    let (mut generation, mut piece) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: text with its length and locals.
    unsafe {
        let status =
            apa_gen_start(engine, request.as_ptr().cast(), request.len(), &raw mut generation, ptr::null_mut());
        if status == apa_status::APA_OK {
            if apa_gen_next(generation, 20, &raw mut piece, ptr::null_mut()) == apa_status::APA_OK {
                apa_string_free(piece);
            }
            apa_gen_free(generation);
        }
        status
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    let Opened { engine, dir } = opened();
    let (text, len) = (bytes.as_ptr().cast(), bytes.len());
    let (mut string, mut count, none) = (ptr::null_mut(), 0, ptr::null_mut());
    // SAFETY: text with its length and locals.
    let status = unsafe {
        match which % 10 {
            0 => generate(*engine, bytes),
            1 => {
                let grammar = String::from_utf8_lossy(bytes);
                let request = serde_json::json!({"prompt": "a", "max_tokens": 4, "grammar": grammar});
                generate(*engine, request.to_string().as_bytes())
            }
            2 => match serde_json::from_slice::<serde_json::Value>(bytes) {
                Ok(schema) => {
                    let format = serde_json::json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
                    let request = serde_json::json!({"prompt": "a", "max_tokens": 4, "response_format": format});
                    generate(*engine, request.to_string().as_bytes())
                }
                Err(_) => apa_status::APA_ERR_ARG,
            },
            3 => apa_chat_render(*engine, text, len, &raw mut string, &raw mut count, none),
            4 => apa_token_count(*engine, text, len, &raw mut count, none),
            5 => apa_feedback(*engine, text, len, &raw mut string, none),
            6 => apa_preference(*engine, text, len, &raw mut string, none),
            7 => apa_sample_add(*engine, text, len, &raw mut string, none),
            8 => apa_reward_put(*engine, text, len, 0.5, none),
            _ => {
                let file = dir.path().join("snapshot");
                std::fs::write(&file, bytes).expect("writing it");
                let path = file.to_str().expect("UTF-8").as_bytes();
                apa_policy_restore(*engine, path.as_ptr().cast(), path.len(), ptr::null_mut(), none)
            }
        }
    };
    apa_string_free(string);
    assert!(status != apa_status::APA_ERR_PANIC && status != apa_status::APA_ERR_CLOSED, "{status:?}");
});
