//! The allocator's one setting. Measures and allocates nothing.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` of mimalloc 3 (its mimalloc.h).
const PURGE_DELAY: c_int = 15;
/// Longer than the time between two uses of a buffer in training, short enough that an idle daemon gives memory back.
const MILLISECONDS: c_long = 300_000;

unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
}

/// Keeps freed memory in the process for five minutes. With mimalloc's default of 10 ms, the system zeroes the pages of
/// a training step's buffers again and again, which takes a tenth of the step.
pub fn keep_freed_memory() {
    // SAFETY: mimalloc is this program's allocator; the call writes one of its options, which it reads whenever it
    // purges.
    unsafe { mi_option_set(PURGE_DELAY, MILLISECONDS) }
}
