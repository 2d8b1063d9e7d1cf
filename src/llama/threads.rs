//! The threads that decode: a pool for each context, so that a decode starts no thread. Never schedules work.

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};

/// How long an idle worker spins before it sleeps (ggml's 0 to 100; 1 is some two milliseconds). Long enough to be awake for the
/// next token, since waking costs a virtual machine more than sampling does; too short for the trainer to miss the core.
const POLL: u32 = 1;

/// Niceness of threads that give way: a tenth of a decoding thread's share where both want a core, so that a machine that is
/// busy with something else slows them without stopping them.
const GIVING_WAY: libc::c_int = 10;

/// Makes the calling thread give way to decoding threads wherever both want a core. ggml's threads spin at a barrier after
/// every operation: one of them waiting for a core holds up all the others, and with them every answer.
pub fn give_way_to_decoding() {
    // SAFETY: no pointers; 0 names the calling thread. A refusal changes nothing and needs no answer.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, GIVING_WAY);
    }
}

/// Longest turn of a decoding thread where others want its core, in nanoseconds: several times the kernel's default.
const TURN: u64 = 10_000_000;

/// Lets whoever wakes up go before the calling thread and those that it starts. Threads that decode never sleep, and would keep a
/// core to the next tick of the clock, four milliseconds: tokens would reach their clients in bursts.
pub fn let_others_go_first() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: all zeros are a valid value of a structure of integers.
        let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
        wish.size = size_of::<libc::sched_attr>() as u32;
        wish.sched_policy = libc::SCHED_OTHER as u32;
        // SAFETY: no pointers; 0 names the calling thread.
        wish.sched_nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        wish.sched_runtime = TURN;
        // SAFETY: the structure is as long as it says and outlives the call. Kernels before 6.12 ignore the length of a turn, and a
        // refusal changes nothing.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
    }
}

/// The pool of one context. Contexts don't share: while one decodes with it, taking it from another would pause it for both,
/// and the decode would wait for ever.
pub struct Threads {
    pub(super) raw: sys::ggml_threadpool_t,
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
        let start = move || unsafe {
            let mut params = sys::ggml_threadpool_params_default(count as i32);
            params.poll = POLL;
            Threads { raw: sys::ggml_threadpool_new(&raw mut params), count }
        };
        let body = move || {
            let_others_go_first();
            start()
        };
        // On a thread of its own, since they inherit its turns.
        let starter = std::thread::Builder::new().name("apa-decoder".into()).spawn(body);
        let started = starter.ok().and_then(|thread| thread.join().ok()).filter(|threads| !threads.raw.is_null());
        started.ok_or_else(|| Error::nomem(format!("can't start {count} threads")))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: its context was freed before.
            unsafe { sys::ggml_threadpool_free(self.raw) }
        }
    }
}
