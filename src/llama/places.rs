//! Where decoding threads run when there is one for every processor. Never starts one.
//!
//! A thread that waits is woken near the one that wakes it. If the other processor is busy at that moment, both share
//! one; and if it is idle a moment later, Linux may leave them there for 30 to 130 ms, since threads that wake and
//! sleep all the time make it think that moving one isn't worth it. Both spin at ggml's barriers meanwhile, and no
//! answer goes on.

use super::threads::Threads;

/// Places for a pool with a thread for every processor that the process may use: one for the thread that decodes, the
/// others for the workers.
#[derive(Clone, Copy)]
pub(super) struct Places {
    all: Set,
    decoder: Set,
    workers: Set,
}

impl Places {
    /// `None` where threads are fewer than processors, or more, or places can't be chosen: they find their own.
    pub(super) fn of(threads: u32) -> Option<Places> {
        let all = Set::allowed()?;
        if threads < 2 || all.count() != threads {
            return None;
        }
        let last = all.last()?;
        Some(Places { all, decoder: all.keep(|cpu| cpu == last), workers: all.keep(|cpu| cpu != last) })
    }

    /// Does work in the places of the workers, on a thread of its own: threads that it starts stay there.
    pub(super) fn as_worker<T: Send>(&self, work: impl FnOnce() -> T + Send) -> std::thread::Result<T> {
        let body = || {
            self.workers.take();
            work()
        };
        std::thread::scope(|threads| threads.spawn(body).join())
    }
}

/// The place of the thread that decodes: one of its own while its pool works with it, any while it decodes alone.
pub struct Seat {
    places: Option<Places>,
    seated: bool,
}

impl Seat {
    /// For the thread that decodes with such pools as this.
    pub fn of(threads: &Threads) -> Seat {
        Seat { places: threads.places, seated: false }
    }

    /// A seat that leaves the thread where it is.
    #[cfg(test)]
    pub fn none() -> Seat {
        Seat { places: None, seated: false }
    }

    /// To be called by the thread that decodes, before it does so with `threads` threads.
    pub fn take(&mut self, threads: u32) {
        let Some(places) = &self.places else { return };
        let together = threads > 1;
        if together != self.seated {
            if together {
                places.decoder.take()
            } else {
                places.all.take()
            }
            self.seated = together;
        }
    }
}

#[cfg(target_os = "linux")]
use linux::Set;

#[cfg(target_os = "linux")]
mod linux {
    /// A set of processors.
    #[derive(Clone, Copy)]
    pub(super) struct Set(libc::cpu_set_t);

    const SIZE: usize = std::mem::size_of::<libc::cpu_set_t>();
    const MOST: usize = 8 * SIZE;

    impl Set {
        fn empty() -> Set {
            // SAFETY: all zero is the empty set.
            Set(unsafe { std::mem::zeroed() })
        }

        /// Those that the calling thread may use. `None` if the system won't tell, or has more than a set can name.
        pub(super) fn allowed() -> Option<Set> {
            let mut set = Set::empty();
            // SAFETY: writes at most SIZE bytes of the set; 0 names the calling thread.
            (unsafe { libc::sched_getaffinity(0, SIZE, &raw mut set.0) } == 0).then_some(set)
        }

        fn each(&self) -> impl Iterator<Item = usize> {
            // SAFETY: the number is below what a set can name.
            (0..MOST).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
        }

        pub(super) fn count(&self) -> u32 {
            self.each().count() as u32
        }

        pub(super) fn last(&self) -> Option<usize> {
            self.each().last()
        }

        pub(super) fn keep(&self, which: impl Fn(usize) -> bool) -> Set {
            let mut kept = Set::empty();
            // SAFETY: as above.
            self.each().filter(|&cpu| which(cpu)).for_each(|cpu| unsafe { libc::CPU_SET(cpu, &mut kept.0) });
            kept
        }

        /// Keeps the calling thread to it. A refusal leaves the thread where it is, which is but slower.
        pub(super) fn take(&self) {
            // SAFETY: reads SIZE bytes of the set; 0 names the calling thread.
            unsafe { libc::sched_setaffinity(0, SIZE, &raw const self.0) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
use elsewhere::Set;

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    /// No system but Linux is told where threads run.
    #[derive(Clone, Copy)]
    pub(super) struct Set;

    impl Set {
        pub(super) fn allowed() -> Option<Set> {
            None
        }

        pub(super) fn count(&self) -> u32 {
            0
        }

        pub(super) fn last(&self) -> Option<usize> {
            None
        }

        pub(super) fn keep(&self, _which: impl Fn(usize) -> bool) -> Set {
            Set
        }

        pub(super) fn take(&self) {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn cpus() -> usize {
        Set::allowed().unwrap().count() as usize
    }

    #[test]
    fn a_thread_that_decodes_with_others_has_a_place_of_its_own_and_alone_it_has_all() {
        let all = cpus();
        if all < 2 {
            return assert!(Places::of(all as u32).is_none());
        }
        let places = Places::of(all as u32).unwrap();
        let workers = places.as_worker(cpus).unwrap();
        assert_eq!((workers, cpus()), (all - 1, all));
        let mut seat = Seat { places: Some(places), seated: false };
        let seen = std::thread::spawn(move || {
            [all as u32, 1].map(|threads| {
                seat.take(threads);
                cpus()
            })
        });
        assert_eq!(seen.join().unwrap(), [1, all]);
        assert_eq!(cpus(), all, "no other thread is moved");
    }

    #[test]
    fn threads_fewer_or_more_than_processors_find_their_own_places() {
        let all = cpus() as u32;
        assert!(
            Places::of(1).is_none() && Places::of(all + 1).is_none() && (all == 2 || Places::of(all - 1).is_none())
        );
    }
}
