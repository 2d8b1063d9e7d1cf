//! Options as C sets them: a key, and a value as text and as JSON.
#![no_main]

use std::ptr;

use apa::ffi::*;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let at = input.iter().position(|b| *b == b'=').unwrap_or(input.len());
    let (key, value) = (&input[..at], input.get(at + 1..).unwrap_or_default());
    let (key, key_len, value, value_len) = (key.as_ptr().cast(), key.len(), value.as_ptr().cast(), value.len());
    let (mut options, mut error) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: text with its length and locals.
    unsafe {
        assert_eq!(apa_options_new(&raw mut options, ptr::null_mut()), apa_status::APA_OK);
        let text = apa_options_set(options, key, key_len, value, value_len, &raw mut error);
        assert_eq!(error.is_null(), text == apa_status::APA_OK);
        apa_error_free(error);
        let json = apa_options_set_json(options, key, key_len, value, value_len, ptr::null_mut());
        for status in [text, json] {
            assert!(matches!(status, apa_status::APA_OK | apa_status::APA_ERR_ARG), "{status:?}");
        }
    }
    apa_options_free(options);
});
