//! Measures how long the trainer works, and how long it waits for a core. Does none of the work.

use super::*;

/// Measures the trainer's work.
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

    /// Seconds that the trainer's threads were ready without a core; 0 where the system does not tell.
    fn waited(&self) -> f64 {
        let threads = lock(&self.threads);
        let of = |name: &PathBuf| -> Option<f64> {
            let line = std::fs::read_to_string(Path::new("/proc").join(name).join("schedstat")).ok()?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        threads.iter().filter_map(of).sum::<f64>() / 1e9
    }
}
