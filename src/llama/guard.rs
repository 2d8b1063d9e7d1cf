//! Runs calls into llama.cpp so that a C++ exception becomes an error. Never lets one unwind through Rust frames.

use std::ffi::{CStr, c_char, c_int, c_void};

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};

// Functions that may throw, declared as unwinding: the bindings' own declarations would abort.
unsafe extern "C-unwind" {
    pub(super) fn llama_decode(ctx: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
    pub(super) fn llama_init_from_model(
        model: *mut sys::llama_model,
        params: sys::llama_context_params,
    ) -> *mut sys::llama_context;
    pub(super) fn llama_adapter_lora_init(
        model: *mut sys::llama_model,
        path: *const c_char,
    ) -> *mut sys::llama_adapter_lora;
    pub(super) fn llama_model_load_from_file(
        path: *const c_char,
        params: sys::llama_model_params,
    ) -> *mut sys::llama_model;
    pub(super) fn llama_model_quantize(
        input: *const c_char,
        output: *const c_char,
        params: *const sys::llama_model_quantize_params,
    ) -> u32;
    pub(super) fn llama_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        n_tokens_max: i32,
        add_special: bool,
        parse_special: bool,
    ) -> i32;
}

unsafe extern "C" {
    fn apa_cpp_guard(
        body: unsafe extern "C-unwind" fn(*mut c_void),
        arg: *mut c_void,
        message: *mut c_char,
        size: usize,
    ) -> c_int;
}

unsafe extern "C" {
    fn apa_kernels_install();
    pub(super) fn apa_kernels_owner(model: *const c_void);
    pub(super) fn apa_kernels_forget(model: *const c_void);
    fn apa_memory_install();
    fn apa_memory_trim();
    #[cfg(test)]
    pub(super) fn apa_kernels_leave_out_here();
    #[cfg(test)]
    pub(super) fn apa_kernels_leave_out(types: *mut *mut c_void, count: usize) -> usize;
}

/// Hangs what is our own into ggml's lists. Before any model is loaded, and once.
pub(super) fn install() {
    // SAFETY: the one caller makes sure of both.
    unsafe {
        apa_kernels_install();
        apa_memory_install();
    }
}

/// Gives the system back what C++ has freed.
pub(super) fn give_back_freed() {
    // SAFETY: any thread may, at any time.
    unsafe { apa_memory_trim() }
}

struct Call<'a, T> {
    body: &'a mut dyn FnMut() -> T,
    result: Option<T>,
}

unsafe extern "C-unwind" fn trampoline<T>(arg: *mut c_void) {
    // SAFETY: `guarded` passes a pointer to its own live `Call<T>`, and waits for this to return.
    let call = unsafe { &mut *arg.cast::<Call<'_, T>>() };
    call.result = Some((call.body)());
}

/// Calls `body`, which calls llama.cpp. `body` must own nothing that needs dropping during the call, since a C++
/// exception skips its destructors.
pub(super) fn guarded<T>(what: &str, mut body: impl FnMut() -> T) -> Result<T> {
    let mut call = Call { body: &mut body, result: None };
    let mut message = [0 as c_char; 256];
    // SAFETY: the trampoline gets the `Call<T>` it expects; the buffer has the given length and stays zero-terminated.
    let status = unsafe { apa_cpp_guard(trampoline::<T>, (&raw mut call).cast(), message.as_mut_ptr(), message.len()) };
    match (status, call.result) {
        (0, Some(result)) => Ok(result),
        (2, _) => Err(Error::nomem(format!("{what}: out of memory"))),
        _ => {
            // SAFETY: snprintf terminated it, or it is still all zeros.
            let text = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
            Err(Error::model(format!("{what}: {text}")))
        }
    }
}
