//! Runs work whose recursion grows with its input on a thread with enough stack. Never limits the input: the caller
//! does.

use crate::error::{Error, Result};

/// Runs `work` with a stack of `bytes` bytes. Only the part that is used takes memory.
///
/// # Errors
/// `NoMem` if there is no address space for it.
pub(super) fn with_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("apa-deep".into()).stack_size(bytes);
        let thread = builder
            .spawn_scoped(scope, work)
            .map_err(|e| Error::nomem(format!("a thread with a stack of {bytes} bytes can't be had: {e}")))?;
        thread.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(left: usize) -> usize {
        let here = std::hint::black_box([left; 16]);
        if left == 0 { 0 } else { depth(left - 1) + here[3] / left }
    }

    #[test]
    fn recursion_goes_as_deep_as_the_stack_that_was_asked_for() {
        assert_eq!(with_stack(256 << 20, || depth(500_000)).unwrap(), 500_000);
    }

    #[test]
    fn a_stack_that_no_machine_has_is_an_error() {
        let error = with_stack(usize::MAX / 4, || ()).unwrap_err();
        assert_eq!(error.code(), crate::Code::NoMem, "{error}");
    }
}
