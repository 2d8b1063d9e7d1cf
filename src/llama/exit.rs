//! Ends the process while threads decode. Waits for nothing.

/// Ends the process at once, without llama.cpp's destructors, which take from threads that decode what they use:
/// `std::process::exit` was ended by a signal instead.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: it takes any code, and nothing runs after it. The ledger is safe at any moment.
    unsafe { libc::_exit(code) }
}
