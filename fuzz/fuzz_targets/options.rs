//! Options as C sets them: a key, and a value as text and as JSON; then the whole, as an engine would read it.
#![no_main]

use std::ptr;

use apa::ffi::*;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (mut options, mut engine, mut error) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: text with its length and locals.
    unsafe {
        assert_eq!(apa_options_new(&raw mut options, ptr::null_mut()), apa_status::APA_OK);
        for line in input.split(|b| *b == b'\n').take(8) {
            let at = line.iter().position(|b| *b == b'=').unwrap_or(line.len());
            let (key, value) = (&line[..at], line.get(at + 1..).unwrap_or_default());
            let (key, key_len, value, value_len) = (key.as_ptr().cast(), key.len(), value.as_ptr().cast(), value.len());
            apa_has(key, key_len);
            let text = apa_options_set(options, key, key_len, value, value_len, &raw mut error);
            assert_eq!(error.is_null(), text == apa_status::APA_OK);
            apa_error_free(error);
            error = ptr::null_mut();
            let json = apa_options_set_json(options, key, key_len, value, value_len, ptr::null_mut());
            for status in [text, json] {
                assert!(matches!(status, apa_status::APA_OK | apa_status::APA_ERR_ARG), "{status:?}");
            }
        }
        // Without a model nothing is opened, but all is checked.
        apa_options_set(options, c"model".as_ptr(), APA_NTS, ptr::null(), 0, ptr::null_mut());
        let status = apa_engine_open(options, &raw mut engine, ptr::null_mut());
        assert_eq!((status, engine.is_null()), (apa_status::APA_ERR_ARG, true));
    }
    apa_options_free(options);
});
