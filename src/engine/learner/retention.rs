//! Has the record deleted that is older than the settings keep, a part at a time, unless the clock can't be believed.
//! Never says what is deleted of it.

use super::*;

/// How often the record is looked through.
const EVERY: Duration = Duration::from_secs(3600);
/// Answers that are deleted at once: others' writes wait for that long.
const AT_ONCE: usize = 1000;
const DAY: u64 = 24 * 3600 * 1000;

/// When the record is looked through.
#[derive(Default)]
pub(super) struct Tidy {
    /// The last look at the clock.
    looked: Option<Instant>,
    /// There is more to delete, and the clock was believed.
    more: bool,
}

/// How the system's clock ran. It is believed once it has run for a day without a jump: one that is set wrongly, and
/// right again soon, deletes nothing that is young.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Clock {
    /// When it was looked at last.
    seen: UnixMillis,
    /// Since when it has run without a jump.
    since: UnixMillis,
}

impl Clock {
    fn new(now: UnixMillis) -> Self {
        Self { seen: now, since: now }
    }

    /// Another look, so many milliseconds after the last one; `None` at a start, where nothing tells how many. Returns
    /// whether it jumped, by more than a day, or after a start backwards at all.
    fn look(&mut self, now: UnixMillis, passed: Option<u64>) -> bool {
        let jumped = match passed {
            Some(passed) => now.abs_diff(self.seen.saturating_add(passed)) > DAY,
            // A machine that is seldom on must not start to wait each time.
            None => now < self.seen || now - self.seen > DAY && self.believed(self.seen),
        };
        if jumped {
            self.since = now;
        }
        self.seen = now;
        jumped
    }

    fn believed(&self, now: UnixMillis) -> bool {
        now >= self.since.saturating_add(DAY)
    }
}

impl Worker {
    /// Deletes what is too old, if it is time for it.
    pub(super) fn tidy_record(&mut self) {
        let days = u64::from(self.config.ledger.keep_days);
        let passed = self.tidy.looked.map(|last| last.elapsed());
        if days == 0 || !self.tidy.more && passed.is_some_and(|passed| passed < EVERY) {
            return;
        }
        if let Err(error) = self.try_tidy(days, passed) {
            tracing::error!(%error, "what is too old could not be deleted");
        }
    }

    fn try_tidy(&mut self, days: u64, passed: Option<Duration>) -> Result<()> {
        let now = unix_millis();
        self.tidy = Tidy { looked: Some(Instant::now()), more: false };
        let noted = self.ledger.clock()?;
        let mut clock = noted.unwrap_or_else(|| Clock::new(now));
        let before = clock.seen;
        if clock.look(now, passed.map(|passed| passed.as_millis() as u64)) {
            tracing::warn!(
                before,
                now,
                "the clock jumped, or nothing ran for long: what is too old (ledger.keep_days) is deleted once the \
                 clock has run for a day"
            );
        }
        self.ledger.note_clock(clock)?;
        if !clock.believed(now) {
            return Ok(());
        }
        let expired = self.ledger.expire(now.saturating_sub(days * DAY), now, AT_ONCE)?;
        if expired.generations > 0 {
            let (answers, feedback) = (expired.generations, expired.feedback);
            tracing::info!(answers, feedback, days, "what was too old is deleted (ledger.keep_days)");
            // There may be more: at the next look.
            self.tidy.more = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = DAY / 24;
    const NOW: u64 = 2_000_000_000_000;

    /// Looks once an hour, for so many hours.
    fn run(clock: &mut Clock, hours: u64) {
        for _ in 0..hours {
            assert!(!clock.look(clock.seen + HOUR, Some(HOUR)));
        }
    }

    #[test]
    fn a_clock_that_jumps_forward_or_back_is_believed_a_day_later() {
        let mut clock = Clock::new(NOW);
        run(&mut clock, 23);
        assert!(!clock.believed(clock.seen), "a new one has shown nothing yet");
        run(&mut clock, 1);
        assert!(clock.believed(clock.seen));
        for jump in [clock.seen + 400 * DAY, clock.seen - 400 * DAY] {
            assert!(clock.look(jump, Some(HOUR)));
            run(&mut clock, 23);
            assert!(!clock.believed(clock.seen));
            run(&mut clock, 1);
            assert!(clock.believed(clock.seen));
        }
        // Set right soon: the wait begins anew.
        assert!(clock.look(clock.seen + 400 * DAY, Some(HOUR)));
        run(&mut clock, 12);
        assert!(clock.look(clock.seen - 400 * DAY, Some(HOUR)));
        run(&mut clock, 12);
        assert!(!clock.believed(clock.seen));
    }

    #[test]
    fn a_start_long_after_the_last_look_or_before_it_is_doubted_and_one_soon_after_is_not() {
        let mut clock = Clock::new(NOW);
        run(&mut clock, 30);
        assert!(!clock.look(clock.seen + 10 * HOUR, None), "a night");
        assert!(clock.believed(clock.seen));
        assert!(clock.look(clock.seen + 400 * DAY, None), "a year, or a clock that is wrong");
        assert!(!clock.look(clock.seen + HOUR, None), "and again, soon after");
        assert!(!clock.believed(clock.seen));
        // A machine that is on for an hour a week deletes all the same.
        let mut believed = 0;
        for _ in 0..10 {
            clock.look(clock.seen + 7 * DAY, None);
            believed += u32::from(clock.believed(clock.seen));
        }
        assert_eq!(believed, 5);
        assert!(clock.look(clock.seen - 1000, None), "back");
        assert!(!clock.believed(clock.seen));
    }
}
