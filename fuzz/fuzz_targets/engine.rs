//! Every call of an engine that takes bytes, on a tiny model: what llama.cpp would assert on has to be an error before
//! it gets there.
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
    /// What `apa_policy_snapshot` wrote of a version.
    snapshot: Vec<u8>,
}
// SAFETY: handles of the C API are safe from any thread.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

fn opened() -> &'static Opened {
    static OPENED: OnceLock<Opened> = OnceLock::new();
    OPENED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let (model, snapshot) = (dir.path().join("tiny.gguf"), dir.path().join("snapshot"));
        tiny_model(&model, &TinySpec::new("llama")).expect("a model");
        let settings = serde_json::json!({
            "model": model, "data": dir.path().join("data"), "serve": {"context": 512, "threads": 1},
            "train": {"auto": false, "threads": 1, "rank": 2},
        })
        .to_string();
        let (mut options, mut engine) = (ptr::null_mut(), ptr::null_mut());
        let path = snapshot.to_str().expect("UTF-8").as_bytes();
        let ok = |status| assert_eq!(status, apa_status::APA_OK);
        // SAFETY: text with its length and locals.
        unsafe {
            ok(apa_options_new(&raw mut options, ptr::null_mut()));
            ok(apa_options_set_json(
                options,
                ptr::null(),
                0,
                settings.as_ptr().cast(),
                settings.len(),
                ptr::null_mut(),
            ));
            ok(apa_engine_open(options, &raw mut engine, ptr::null_mut()));
            for sample in [
                c"{\"prompt\": \"the\", \"completion\": \"one\", \"reward\": 1}",
                c"{\"prompt\": \"the\", \"completion\": \"two\", \"reward\": -1}",
            ] {
                ok(apa_sample_add(engine, sample.as_ptr(), APA_NTS, ptr::null_mut(), ptr::null_mut()));
            }
            ok(apa_trainer_step(engine, ptr::null_mut(), ptr::null_mut()));
            ok(apa_policy_snapshot(engine, 1, path.as_ptr().cast(), path.len(), ptr::null_mut()));
        }
        let snapshot = std::fs::read(snapshot).expect("it was written");
        Opened { engine, dir, snapshot }
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

/// Restores from a file of these bytes. The path is good.
fn restore(opened: &Opened, bytes: &[u8]) -> apa_status {
    let file = opened.dir.path().join("restored");
    std::fs::write(&file, bytes).expect("writing it");
    let path = file.to_str().expect("UTF-8").as_bytes();
    // SAFETY: text with its length and locals.
    unsafe { apa_policy_restore(opened.engine, path.as_ptr().cast(), path.len(), ptr::null_mut(), ptr::null_mut()) }
}

/// The snapshot with some bytes of it replaced, or cut.
fn damaged(snapshot: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = snapshot.to_vec();
    let (changes, cut) = changes.as_chunks::<4>();
    for [a, b, c, new] in changes {
        let at = u32::from_le_bytes([*a, *b, *c, 0]) as usize % bytes.len();
        bytes[at] = *new;
    }
    if let [a, b] = cut {
        bytes.truncate(usize::from(u16::from_le_bytes([*a, *b])));
    }
    bytes
}

/// Serves HTTP at what may be an address, and stops that again.
fn serve(engine: *mut apa_engine, address: &[u8]) -> apa_status {
    // SAFETY: text with its length and locals.
    unsafe {
        let status = apa_http_start(engine, address.as_ptr().cast(), address.len(), ptr::null_mut(), ptr::null_mut());
        assert_eq!(apa_http_stop(engine, ptr::null_mut()), apa_status::APA_OK);
        status
    }
}

unsafe extern "C" fn on_text(left: *mut std::ffi::c_void, _: *const std::ffi::c_char, _: usize) -> i32 {
    // SAFETY: it is the counter below.
    let left = unsafe { &mut *left.cast::<i32>() };
    *left -= 1;
    i32::from(*left < 0)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    let opened = opened();
    let engine = opened.engine;
    let (text, len) = (bytes.as_ptr().cast(), bytes.len());
    let (mut string, mut count, none) = (ptr::null_mut(), 0, ptr::null_mut());
    // SAFETY: text with its length and locals.
    let status = unsafe {
        match which % 16 {
            0 => generate(engine, bytes),
            1 => {
                let grammar = String::from_utf8_lossy(bytes);
                let request = serde_json::json!({"prompt": "a", "max_tokens": 4, "grammar": grammar});
                generate(engine, request.to_string().as_bytes())
            }
            2 => match serde_json::from_slice::<serde_json::Value>(bytes) {
                Ok(schema) => {
                    let format =
                        serde_json::json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
                    let request = serde_json::json!({"prompt": "a", "max_tokens": 4, "response_format": format});
                    generate(engine, request.to_string().as_bytes())
                }
                Err(_) => apa_status::APA_ERR_ARG,
            },
            3 => apa_chat_render(engine, text, len, &raw mut string, &raw mut count, none),
            4 => apa_token_count(engine, text, len, &raw mut count, none),
            5 => apa_feedback(engine, text, len, &raw mut string, none),
            6 => apa_preference(engine, text, len, &raw mut string, none),
            7 => apa_sample_add(engine, text, len, &raw mut string, none),
            8 => apa_reward_put(engine, text, len, 0.5, none),
            9 => restore(opened, bytes),
            10 => match damaged(&opened.snapshot, bytes) {
                // What is whole would make a version each time.
                whole if whole == opened.snapshot => apa_status::APA_OK,
                bytes => restore(opened, &bytes),
            },
            11 => apa_forget(engine, text, len, &raw mut string, none),
            12 => apa_policy_restore(engine, text, len, ptr::null_mut(), none),
            13 => {
                // In its own folder, since it writes.
                let name = String::from_utf8_lossy(bytes).replace('/', "_");
                let path = format!("{}/to-{name}", opened.dir.path().display());
                let status = apa_policy_snapshot(engine, 1, path.as_ptr().cast(), path.len(), none);
                drop(std::fs::remove_file(path));
                status
            }
            14 => serve(engine, bytes),
            _ => {
                let mut left = 3i32;
                apa_generate(engine, text, len, Some(on_text), (&raw mut left).cast(), &raw mut string, none)
            }
        }
    };
    apa_string_free(string);
    assert!(status != apa_status::APA_ERR_PANIC && status != apa_status::APA_ERR_CLOSED, "{status:?}");
});
