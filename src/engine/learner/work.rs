//! How long the trainer works, and waits for a core meanwhile. Does none of the work.

use super::*;

/// The trainer at work, for the meters.
pub(super) struct Work {
    since: Instant,
    waited: f64,
}

impl Worker {
    pub(super) fn begin(&self) -> Work {
        self.shared.set_state(TrainerState::Training);
        self.scheduler.beside_training(true);
        Work { since: Instant::now(), waited: self.waited() }
    }

    pub(super) fn end(&self, work: Work) {
        self.scheduler.beside_training(false);
        let waited = self.waited() - work.waited;
        let mut status = self.shared.status();
        status.state = TrainerState::Idle;
        status.seconds += work.since.elapsed().as_secs_f64();
        status.waited_seconds += waited;
    }

    /// Seconds that the trainer's threads have been ready without a core. 0 where the system doesn't say.
    fn waited(&self) -> f64 {
        let threads = lock(&self.threads);
        let of = |name: &PathBuf| -> Option<f64> {
            let line = std::fs::read_to_string(Path::new("/proc").join(name).join("schedstat")).ok()?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        threads.iter().filter_map(of).sum::<f64>() / 1e9
    }
}
