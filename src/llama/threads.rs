//! The threads that decode: a pool for each context, so that a decode starts no thread. Never schedules work.

use llama_cpp_sys_2 as sys;

use super::affinity::Affinity;
use crate::error::{Error, Result};

/// Rounds that an idle worker spins before it sleeps (ggml's 0 to 100). One that sleeps between two tokens leaves its
/// core to whoever brings the last one to its client; one that spins keeps them waiting for the clock's next ticks.
const POLL: u32 = 0;

/// Niceness of threads that give way: a tenth of a decoding thread's share where both want a core, so that a machine
/// that is busy with something else slows them without stopping them.
const GIVING_WAY: libc::c_int = 10;

/// Makes the calling thread give way to decoding threads wherever both want a core. ggml's threads spin at a barrier
/// after every operation: one of them waiting for a core holds up all the others, and with them every answer.
pub fn give_way_to_decoding() {
    // SAFETY: no pointers; 0 names the calling thread. A refusal changes nothing and needs no answer.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, GIVING_WAY);
    }
}

/// The pool of one context. Contexts don't share: while one decodes with it, taking it from another would pause it for
/// both, and the decode would wait for ever.
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
    /// Starts `count` threads, the caller of a decode being one of them. They are as nice as the caller of this.
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

/// A pool that is being sent from the thread that started it.
struct Pool(sys::ggml_threadpool_t);

// SAFETY: as for [`Threads`].
unsafe impl Send for Pool {}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: its context was freed before.
        unsafe { sys::ggml_threadpool_free(self.raw) }
    }
}
