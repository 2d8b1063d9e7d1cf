//! CPU affinity of decoding threads, if there is one for every processor. Never starts a thread.
//!
//! A waking thread is placed near the thread that wakes it. If the other processor is busy at that moment, both share
//! one; even if it becomes idle, Linux may leave them there for 30 to 130 ms, since threads that keep waking and
//! sleeping look too short-lived to move. Both spin at ggml's barriers meanwhile, and no answer progresses.

/// The processors of a pool that has a thread for each of them: one for the decoding thread, the others for the
/// workers.
#[derive(Clone, Copy)]
pub(super) struct Affinity {
    all: CpuSet,
    decoder: CpuSet,
    workers: CpuSet,
}

impl Affinity {
    /// `None` if there are fewer or more threads than processors, or they can't be pinned; the system places them then.
    pub(super) fn of(threads: u32) -> Option<Affinity> {
        let all = CpuSet::allowed()?;
        if threads < 2 || all.count() != threads {
            return None;
        }
        let last = all.last()?;
        Some(Affinity { all, decoder: all.keep(|cpu| cpu == last), workers: all.keep(|cpu| cpu != last) })
    }

    /// Runs `work` on a thread with the workers' affinity, which threads it starts inherit.
    pub(super) fn as_worker<T: Send>(&self, work: impl FnOnce() -> T + Send) -> std::thread::Result<T> {
        let body = || {
            self.workers.pin();
            work()
        };
        std::thread::scope(|threads| threads.spawn(body).join())
    }
}

/// Pins the decoding thread: to a processor of its own while its pool works with it, to none while it decodes alone.
pub struct DecoderPin {
    affinity: Option<Affinity>,
    pinned: bool,
}

impl DecoderPin {
    /// For the thread that decodes with pools of this affinity.
    pub(super) fn new(affinity: Option<Affinity>) -> DecoderPin {
        DecoderPin { affinity, pinned: false }
    }

    /// One that leaves the thread where it is.
    #[cfg(test)]
    pub fn none() -> DecoderPin {
        DecoderPin { affinity: None, pinned: false }
    }

    /// Called by the decoding thread before it decodes with `threads` threads.
    pub fn set(&mut self, threads: u32) {
        let Some(affinity) = &self.affinity else { return };
        let together = threads > 1;
        if together != self.pinned {
            if together {
                affinity.decoder.pin()
            } else {
                affinity.all.pin()
            }
            self.pinned = together;
        }
    }
}

#[cfg(target_os = "linux")]
use linux::CpuSet;

#[cfg(target_os = "linux")]
mod linux {
    /// A set of processors.
    #[derive(Clone, Copy)]
    pub(super) struct CpuSet(libc::cpu_set_t);

    const SIZE: usize = std::mem::size_of::<libc::cpu_set_t>();
    const MOST: usize = 8 * SIZE;

    impl CpuSet {
        fn empty() -> CpuSet {
            // SAFETY: all zero is the empty set.
            CpuSet(unsafe { std::mem::zeroed() })
        }

        /// The processors that the calling thread may use. `None` if the system doesn't tell, or has more than a set
        /// holds.
        pub(super) fn allowed() -> Option<CpuSet> {
            let mut set = CpuSet::empty();
            // SAFETY: writes at most SIZE bytes of the set; 0 names the calling thread.
            (unsafe { libc::sched_getaffinity(0, SIZE, &raw mut set.0) } == 0).then_some(set)
        }

        fn each(&self) -> impl Iterator<Item = usize> {
            // SAFETY: the number is below the size of a set.
            (0..MOST).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
        }

        pub(super) fn count(&self) -> u32 {
            self.each().count() as u32
        }

        pub(super) fn last(&self) -> Option<usize> {
            self.each().last()
        }

        pub(super) fn keep(&self, which: impl Fn(usize) -> bool) -> CpuSet {
            let mut kept = CpuSet::empty();
            // SAFETY: as above.
            self.each().filter(|&cpu| which(cpu)).for_each(|cpu| unsafe { libc::CPU_SET(cpu, &mut kept.0) });
            kept
        }

        /// Pins the calling thread to the set. If the system refuses, the thread is merely slower.
        pub(super) fn pin(&self) {
            // SAFETY: reads SIZE bytes of the set; 0 names the calling thread.
            unsafe { libc::sched_setaffinity(0, SIZE, &raw const self.0) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
use elsewhere::CpuSet;

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    /// Affinity is only set on Linux.
    #[derive(Clone, Copy)]
    pub(super) struct CpuSet;

    impl CpuSet {
        pub(super) fn allowed() -> Option<CpuSet> {
            None
        }

        pub(super) fn count(&self) -> u32 {
            0
        }

        pub(super) fn last(&self) -> Option<usize> {
            None
        }

        pub(super) fn keep(&self, _which: impl Fn(usize) -> bool) -> CpuSet {
            CpuSet
        }

        pub(super) fn pin(&self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn cpus() -> usize {
        CpuSet::allowed().unwrap().count() as usize
    }

    #[test]
    fn a_thread_that_decodes_with_others_has_a_processor_of_its_own_and_alone_it_has_all() {
        let all = cpus();
        if all < 2 {
            return assert!(Affinity::of(all as u32).is_none());
        }
        let affinity = Affinity::of(all as u32).unwrap();
        let workers = affinity.as_worker(cpus).unwrap();
        assert_eq!((workers, cpus()), (all - 1, all));
        let mut pin = DecoderPin { affinity: Some(affinity), pinned: false };
        let seen = std::thread::spawn(move || {
            [all as u32, 1].map(|threads| {
                pin.set(threads);
                cpus()
            })
        });
        assert_eq!(seen.join().unwrap(), [1, all]);
        assert_eq!(cpus(), all, "no other thread is moved");
    }

    #[test]
    fn threads_fewer_or_more_than_processors_are_not_pinned() {
        let all = cpus() as u32;
        assert!(
            Affinity::of(1).is_none()
                && Affinity::of(all + 1).is_none()
                && (all == 2 || Affinity::of(all - 1).is_none())
        );
    }
}
