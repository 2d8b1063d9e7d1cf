//! The decoding threads: a pool per context, so that a decode starts no thread. Never schedules work.

use llama_cpp_sys_2 as sys;

use super::affinity::Affinity;
use crate::error::{Error, Result};

/// Rounds that an idle worker spins before it sleeps (ggml's 0 to 100). A worker that sleeps between tokens leaves its
/// core to the thread that delivers the last one; one that spins delays it until the next clock ticks.
const POLL: u32 = 0;

/// Niceness of threads that give way: a tenth of a decoding thread's share where both want a core, so that a machine
/// busy with something else slows them but doesn't stop them.
const GIVING_WAY: libc::c_int = 10;

/// Makes the calling thread give way to decoding threads. ggml's threads spin at a barrier after every operation: if
/// one waits for a core, so do all others, and with them every answer.
pub fn give_way_to_decoding() {
    // SAFETY: no pointers; 0 names the calling thread. A refusal changes nothing and needs no handling.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, GIVING_WAY);
    }
}

/// The pool of one context. Contexts don't share pools: taking one from another context while it decodes would pause it
/// for both, and the decode would wait for ever.
pub struct Threads {
    pub(super) raw: sys::ggml_threadpool_t,
    pub(super) affinity: Option<Affinity>,
    count: u32,
}

// SAFETY: ggml's pool is used through contexts, by the one thread that decodes; freeing needs no special thread.
unsafe impl Send for Threads {}
// SAFETY: nothing is mutated through a shared reference.
unsafe impl Sync for Threads {}

impl Threads {
    /// Starts `count` threads, one of which is the caller of a decode. They inherit this caller's niceness.
    ///
    /// # Errors
    /// `Arg` for 0 or more than 512, `NoMem` if they can't be started.
    pub fn new(count: u32) -> Result<Threads> {
        if count == 0 || count > 512 {
            return Err(Error::arg(format!("{count} threads, expected 1 to 512")));
        }
        // SAFETY: the parameters are ggml's own defaults for a count in range.
        let start = || unsafe {
            let mut params = sys::ggml_threadpool_params_default(count as i32);
            params.poll = POLL;
            Pool(sys::ggml_threadpool_new(&raw mut params))
        };
        let affinity = Affinity::of(count);
        let pool = match &affinity {
            Some(affinity) => affinity.as_worker(start).map_err(|_| Error::panic("starting threads panicked"))?,
            None => start(),
        };
        if pool.0.is_null() {
            return Err(Error::nomem(format!("can't start {count} threads")));
        }
        Ok(Threads { raw: pool.0, affinity, count })
    }

    /// Number of threads.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// A pool on its way from the thread that started it.
struct Pool(sys::ggml_threadpool_t);

// SAFETY: as for [`Threads`].
unsafe impl Send for Pool {}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: its context was freed before.
        unsafe { sys::ggml_threadpool_free(self.raw) }
    }
}
