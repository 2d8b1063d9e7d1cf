//! The C API as C sees it: its header, its symbols, and what misuse gets. What needs a model is in `ffi_engine`.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::process::Command;
use std::ptr;

use apa::ffi::*;

use crate::support::c::{ROOT, STRICT, message, options, run, set, set_json, shared_library};

/// The header as the sources have it; files in its order.
fn header_now() -> String {
    let root = Path::new(ROOT);
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let order = [
        "library",
        "error",
        "strings",
        "options",
        "engine",
        "generation",
        "feedback",
        "trainer",
        "policy",
        "feed",
        "reward",
        "http",
        "log",
    ];
    let start = cbindgen::Builder::new().with_config(config);
    let builder = order.iter().fold(start, |b, name| b.with_src(root.join(format!("src/ffi/{name}.rs"))));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn header_is_current() {
    let now = header_now();
    // The Go module has a copy, since it is built far from here.
    for name in ["include/apa.h", "bindings/go/apa.h"] {
        let path = Path::new(ROOT).join(name);
        if std::env::var_os("APA_UPDATE_HEADER").is_some_and(|v| v == "1") {
            std::fs::write(&path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == now, "{name} is out of date; APA_UPDATE_HEADER=1 writes it");
    }
}

#[test]
fn header_is_clean_c99_and_cpp11() {
    let dir = tempfile::tempdir().unwrap();
    // Twice: the guard. A use of each kind of thing: the types are complete enough.
    let source = "#include <apa.h>\n#include <apa.h>\n\
        int main(void) { apa_error *e = 0; apa_status s = apa_options_new(0, &e); apa_error_free(e); return s == \
        APA_OK; }\n";
    let (c, cpp) = (dir.path().join("use.c"), dir.path().join("use.cpp"));
    std::fs::write(&c, source).unwrap();
    std::fs::write(&cpp, source).unwrap();
    let include = Path::new(ROOT).join("include");
    for (compilers, standard, source) in [(["gcc", "clang"], "-std=c99", &c), (["g++", "clang++"], "-std=c++11", &cpp)]
    {
        for compiler in compilers {
            let mut check = Command::new(compiler);
            run(check.arg(standard).args(STRICT).arg("-fsyntax-only").arg("-I").arg(&include).arg(source));
        }
    }
}

#[test]
fn the_cpp_header_is_clean_alone_and_twice() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("use.cpp");
    std::fs::write(&source, "#include <apa.hpp>\n#include <apa.hpp>\nint main() { apa::options options; }\n").unwrap();
    let include = Path::new(ROOT).join("include");
    for compiler in ["g++", "clang++"] {
        let mut check = Command::new(compiler);
        check.arg("-std=c++17").args(STRICT).args(["-Wshadow", "-Wconversion", "-fsyntax-only"]);
        run(check.arg("-I").arg(&include).arg(&source));
    }
}

/// The README's examples are read first, and never run as they stand.
#[test]
fn the_readme_shows_each_language_in_ten_lines_that_compile() {
    let readme = include_str!("../../README.md");
    let dir = tempfile::tempdir().unwrap();
    let setup = [
        (
            "c",
            "#include <apa.h>\n#include <stdio.h>\nvoid shown(void);\nvoid shown(void) {\napa_options *options = \
            NULL; apa_engine \
             *engine = NULL; apa_gen *gen = NULL;\napa_string *id = NULL, *piece = NULL, *outcome = NULL; apa_error \
             *error = NULL;\n",
        ),
        ("cpp", "#include <apa.hpp>\n#include <iostream>\nvoid shown();\nvoid shown() {\n"),
        ("go", ""),
        ("js", ""),
    ];
    for (language, before) in setup {
        let (_, rest) = readme.split_once(&format!("```{language}\n")).unwrap();
        let (shown, _) = rest.split_once("```").unwrap();
        let lines = shown.lines().filter(|line| !line.trim().is_empty()).count();
        assert!((5..=10).contains(&lines), "{language} is shown in {lines} lines");
        if !before.is_empty() {
            let file = dir.path().join(format!("shown.{language}"));
            std::fs::write(&file, format!("{before}{shown}}}\n")).unwrap();
            let (compiler, standard) = if language == "c" { ("gcc", "-std=c99") } else { ("g++", "-std=c++17") };
            let mut check = Command::new(compiler);
            check.arg(standard).args(STRICT).arg("-fsyntax-only").arg("-I").arg(Path::new(ROOT).join("include"));
            run(check.arg(file));
        }
    }
}

#[test]
fn the_shared_library_exports_what_the_header_declares_and_nothing_else() {
    let listing = run(Command::new("nm").args(["--dynamic", "--defined-only", "--extern-only"]).arg(shared_library()));
    let listing = String::from_utf8(listing.stdout).unwrap();
    let exported: Vec<&str> = listing.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let others: Vec<_> = exported.iter().filter(|name| !name.starts_with("apa_")).collect();
    assert!(others.is_empty(), "{} other symbols, as {:?}", others.len(), &others[..others.len().min(5)]);
    let header = std::fs::read_to_string(Path::new(ROOT).join("include/apa.h")).unwrap();
    for name in &exported {
        assert!(header.contains(&format!("{name}(")), "{name} is exported, not declared");
    }
    assert!(exported.len() > 20, "{exported:?}");
}

#[test]
fn the_library_says_what_it_is() {
    assert_eq!(apa_abi_version(), APA_ABI_VERSION);
    // SAFETY: static and NUL-terminated.
    assert_eq!(unsafe { CStr::from_ptr(apa_version()) }.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    let has = |name: &str| {
        // SAFETY: text with its length.
        unsafe { apa_has(name.as_ptr().cast(), name.len()) }
    };
    assert_eq!((has("train"), has("teleport"), has("")), (1, 0, 0));
    assert_eq!(has("train-cuda"), i32::from(cfg!(feature = "train-cuda")));
    // SAFETY: NULL is looked at, not followed.
    assert_eq!(unsafe { apa_has(ptr::null(), APA_NTS) }, 0);
}

#[test]
fn an_unknown_option_names_the_nearest() {
    let options = options();
    let (status, text) = set(options, "train.lamda", "0.2");
    assert_eq!(status, apa_status::APA_ERR_ARG);
    assert!(text.contains("train.lambda"), "{text}");
    let (status, text) = set_json(options, "", r#"{"serve":{"slotz":1}}"#);
    assert_eq!(status, apa_status::APA_ERR_ARG);
    assert!(text.contains("serve.slots"), "{text}");
    apa_options_free(options);
}

#[test]
fn options_take_text_json_and_sections() {
    let options = options();
    let ok = (apa_status::APA_OK, String::new());
    assert_eq!(set(options, "train.lambda", "0.2"), ok);
    assert_eq!(set(options, "model", "base.gguf"), ok);
    assert_eq!(set_json(options, "train.lambda", "0.2"), ok);
    assert_eq!(set_json(options, "train", r#"{"lambda":0.3,"batch":8}"#), ok);
    assert_eq!(set_json(options, "", r#"{"model":"base.gguf","serve":{"slots":2}}"#), ok);
    for (key, json) in [("train.lambda", "\"x\""), ("", "3"), ("train.lambda", "{"), ("train", "3")] {
        assert_eq!(set_json(options, key, json).0, apa_status::APA_ERR_ARG, "{key} {json}");
    }
    apa_options_free(options);
}

#[test]
fn invalid_utf8_is_an_error_with_its_place() {
    let options = options();
    let (key, mut error) = (b"mod\xffel", ptr::null_mut());
    // SAFETY: text with its length and a local.
    let status =
        unsafe { apa_options_set(options, key.as_ptr().cast(), key.len(), c"x".as_ptr(), APA_NTS, &raw mut error) };
    assert_eq!(status, apa_status::APA_ERR_ARG);
    assert_eq!(message(error), "key is not valid UTF-8 from byte 3 on");
    apa_options_free(options);
}

#[test]
fn a_freed_handle_is_closed_and_a_second_free_harmless() {
    let options = options();
    apa_options_free(options);
    apa_options_free(options);
    assert_eq!(set(options, "model", "x"), (apa_status::APA_ERR_CLOSED, "the apa_options has been freed".into()));
    let mut error = ptr::null_mut();
    // SAFETY: the error is a local, NULL is refused.
    unsafe { apa_options_new(ptr::null_mut(), &raw mut error) };
    assert_eq!(apa_error_code(error), apa_status::APA_ERR_ARG);
    apa_error_free(error);
    apa_error_free(error);
    assert_eq!(apa_error_code(error), apa_status::APA_ERR_CLOSED);
    // SAFETY: static text for a freed error.
    assert!(unsafe { CStr::from_ptr(apa_error_message(error)) }.is_empty());
}

#[test]
fn a_pointer_that_is_no_such_handle_is_an_argument_error() {
    let options = options();
    let mut status_json = ptr::null_mut();
    let mut of = |handle: *const apa_engine| {
        let mut error = ptr::null_mut();
        // SAFETY: handles are looked up, never followed; the rest are locals.
        let status = unsafe { apa_engine_status(handle, &raw mut status_json, &raw mut error) };
        assert_eq!(status, apa_status::APA_ERR_ARG);
        message(error)
    };
    assert!(of(ptr::null()).contains("NULL"));
    assert!(of(options.cast()).contains("of another type"));
    assert!(of((&raw const options).cast()).contains("not a handle"));
    assert!(of(ptr::without_provenance(usize::MAX)).contains("not a handle"));
    assert!(status_json.is_null());
    apa_engine_free(options.cast());
    assert_eq!(set(options, "model", "x").0, apa_status::APA_OK, "freed through another type");
    apa_options_free(options);
}

#[test]
fn null_is_an_argument_error_wherever_it_is_not_allowed() {
    let (no_text, none) = (ptr::null::<c_char>(), ptr::null_mut());
    let (engine, gen_, options) = (ptr::null_mut::<apa_engine>(), ptr::null_mut::<apa_gen>(), options());
    let (mut out_string, mut out_gen, mut out_engine) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    let (feed, mut out_feed) = (ptr::null_mut::<apa_feed>(), ptr::null_mut());
    let (mut count, mut version) = (0usize, 0u64);
    let (string, text) = (&raw mut out_string, c"{}".as_ptr());
    // SAFETY: NULL handles are looked up, NULL text and out-parameters are refused, the others are locals.
    let statuses = unsafe {
        [
            apa_options_new(ptr::null_mut(), none),
            apa_options_set(ptr::null_mut(), text, 1, text, 1, none),
            apa_options_set(options, no_text, 1, text, 1, none),
            apa_options_set(options, no_text, APA_NTS, text, 1, none),
            apa_options_set_json(options, text, 1, no_text, 1, none),
            apa_engine_open(options, ptr::null_mut(), none),
            apa_engine_open(ptr::null(), &raw mut out_engine, none),
            apa_engine_shutdown(engine, none),
            apa_engine_status(engine, string, none),
            apa_engine_status(engine, ptr::null_mut(), none),
            apa_token_count(engine, text, 1, &raw mut count, none),
            apa_token_count(engine, text, 1, ptr::null_mut(), none),
            apa_chat_render(engine, text, 1, string, &raw mut count, none),
            apa_gen_start(engine, text, 1, &raw mut out_gen, none),
            apa_gen_start(engine, text, 1, ptr::null_mut(), none),
            apa_gen_id(gen_, string, none),
            apa_gen_next(gen_, 0, string, none),
            apa_gen_next(gen_, 0, ptr::null_mut(), none),
            apa_gen_result(gen_, string, none),
            apa_gen_cancel(gen_, none),
            apa_gen_set_wake(gen_, None, ptr::null_mut(), none),
            apa_generate(engine, text, 1, None, ptr::null_mut(), string, none),
            apa_feedback(engine, text, 1, string, none),
            apa_preference(engine, text, 1, string, none),
            apa_trainer_step(engine, string, none),
            apa_trainer_status(engine, string, none),
            apa_policy_version(engine, &raw mut version, none),
            apa_policy_sync(engine, &raw mut version, none),
            apa_policy_activate(engine, 0, none),
            apa_policy_rollback(engine, &raw mut version, none),
            apa_policy_list(engine, string, none),
            apa_policy_snapshot(engine, 1, text, 1, none),
            apa_policy_restore(engine, text, 1, &raw mut version, none),
            apa_engine_metrics(engine, string, none),
            apa_sample_add(engine, text, 1, string, none),
            apa_trainer_start(engine, none),
            apa_forget(engine, text, 1, string, none),
            apa_unlearn_plan(engine, text, 1, string, none),
            apa_unlearn(engine, text, 1, string, none),
            apa_trainer_stop(engine, none),
            apa_events_open(engine, &raw mut out_feed, none),
            apa_rewards_open(engine, &raw mut out_feed, none),
            apa_rewards_open(engine, ptr::null_mut(), none),
            apa_feed_next(feed, 0, string, none),
            apa_feed_next(feed, 0, ptr::null_mut(), none),
            apa_feed_set_wake(feed, None, ptr::null_mut(), none),
            apa_reward_put(engine, text, 1, 0.0, none),
            apa_reward_set(engine, None, ptr::null_mut(), none),
            apa_http_start(engine, text, 1, string, none),
            apa_http_stop(engine, none),
        ]
    };
    for (i, status) in statuses.into_iter().enumerate() {
        assert_eq!(status, apa_status::APA_ERR_ARG, "call {i}");
    }
    assert!(
        out_string.is_null()
            && out_gen.is_null()
            && out_engine.is_null()
            && out_feed.is_null()
            && (count, version) == (0, 0)
    );
    apa_engine_free(ptr::null_mut());
    apa_gen_free(ptr::null_mut());
    apa_feed_free(ptr::null_mut());
    apa_options_free(ptr::null_mut());
    apa_string_free(ptr::null_mut());
    apa_error_free(ptr::null_mut());
    assert_eq!((apa_string_len(ptr::null()), apa_error_code(ptr::null())), (0, apa_status::APA_ERR_ARG));
    apa_options_free(options);
}

#[test]
fn a_missing_model_is_an_error_and_no_handle() {
    let (options, dir) = (options(), tempfile::tempdir().unwrap());
    let missing = dir.path().join("missing.gguf");
    assert_eq!(set(options, "model", missing.to_str().unwrap()).0, apa_status::APA_OK);
    assert_eq!(set(options, "data", dir.path().to_str().unwrap()).0, apa_status::APA_OK);
    let (mut engine, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the out-parameters are locals.
    let status = unsafe { apa_engine_open(options, &raw mut engine, &raw mut error) };
    assert_eq!(status, apa_status::APA_ERR_MODEL);
    let text = message(error);
    assert!(text.contains("missing.gguf") && engine.is_null(), "{text}");
    apa_options_free(options);
}
