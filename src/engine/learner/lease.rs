//! Which server of a shared ledger decides (`serve.role`): the one that holds the lease, until it gives it back or
//! falls silent. Never decides anything itself.

use super::*;
use crate::ledger::Lease;
use crate::system::host_name;

/// The time between two signs of life of the server that decides.
const BEAT: Duration = Duration::from_secs(3);
/// How long a server is silent before another one takes its place.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether this server decides from the start on. Where a server that is gone may still have the lease, that shows
/// later.
///
/// # Errors
/// `Io` if the ledger can't be read or written.
pub(in crate::engine) fn at_start(ledger: &Ledger, role: Role) -> Result<bool> {
    if !ledger.is_shared() {
        return Ok(true);
    }
    ledger.need_lease();
    if role == Role::Server {
        return Ok(false);
    }
    let seen = ledger.lease()?;
    let free = seen.as_ref().is_none_or(|lease| lease.holder.is_none());
    if free { ledger.take_lease(seen.as_ref(), &name()) } else { Ok(false) }
}

/// This process, for people to read.
fn name() -> String {
    format!("{}, process {}", host_name(), std::process::id())
}

/// Shows on its own thread that the server lives which holds the lease.
pub(super) struct Keeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `lost` is called when another server has taken the lease.
    pub(super) fn start(ledger: Arc<Ledger>, lost: impl Fn() + Send + 'static) -> Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new().name("apa-lease".into()).spawn(move || {
            while let Err(crossbeam_channel::RecvTimeoutError::Timeout) = stopped.recv_timeout(BEAT) {
                if !ledger.may_decide() {
                    continue;
                }
                match ledger.keep_lease() {
                    Ok(true) => {}
                    Ok(false) => lost(),
                    Err(error) => tracing::warn!(%error, "this server's right to decide is not renewed"),
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps the lease panicked");
        }
    }
}

/// The lease as a server that follows sees it.
#[derive(Default)]
pub(super) struct Watched {
    /// The lease, and since when it shows no sign of life.
    seen: Option<(Lease, Instant)>,
}

impl Watched {
    /// Whether its holder has gone, or been silent for too long.
    fn is_free(&mut self, lease: Option<&Lease>) -> bool {
        let Some(lease) = lease.filter(|lease| lease.holder.is_some()) else { return true };
        match &self.seen {
            Some((before, since)) if before == lease => since.elapsed() >= PATIENCE,
            _ => {
                self.seen = Some((lease.clone(), Instant::now()));
                false
            }
        }
    }
}

impl Worker {
    /// Everything from reading the model to the end, starting with the order that ended a wait.
    pub(super) fn live(
        &mut self,
        pool: &rayon::ThreadPool,
        mut first: Option<Order>,
        orders: &Receiver<Order>,
        reminders: &Receiver<Order>,
    ) {
        loop {
            if !self.ledger.may_decide() && !self.follow_along(orders, reminders) {
                return;
            }
            if !self.decide_along(pool, first.take(), orders, reminders) {
                return;
            }
            self.stand_down();
        }
    }

    /// Trains and judges until the engine ends, or until another server decides: then it returns true.
    fn decide_along(
        &mut self,
        pool: &rayon::ThreadPool,
        first: Option<Order>,
        orders: &Receiver<Order>,
        reminders: &Receiver<Order>,
    ) -> bool {
        self.take_back_interrupt();
        self.resume_unlearning();
        pool.install(|| self.prepare());
        self.resume_trial();
        self.end_trial_of_removed();
        if let Err(error) = self.begin_watch() {
            tracing::error!(%error, "the active version is not watched");
        }
        self.prune();
        if let Some(order) = first {
            pool.install(|| self.obey(order, orders));
        }
        while self.ledger.may_decide() {
            let Some(order) = self.wait(orders, reminders) else { return false };
            pool.install(|| self.obey(order, orders));
        }
        true
    }

    /// The next order, or a look at what is due; none at the end of the engine.
    pub(super) fn wait(&self, orders: &Receiver<Order>, reminders: &Receiver<Order>) -> Option<Order> {
        let order = crossbeam_channel::select! {
            recv(orders) -> order => order,
            recv(reminders) -> order => order,
            default(LOOK) => Ok(Order::Due),
        };
        // Without a handle nobody orders anything any more.
        order.ok().filter(|_| !self.shared.stopping.load(Ordering::Acquire))
    }

    /// Takes over if nobody decides and this server may. Returns whether it decides from now on.
    pub(super) fn take_over(&mut self, watched: &mut Watched) -> bool {
        let may = self.config.serve.role != Role::Server;
        let taken = self.ledger.lease().and_then(|lease| {
            let free = watched.is_free(lease.as_ref());
            // Who can't serve what is on record is no one to decide about it.
            let able = may && free && self.active == self.ledger.active()?;
            let taken = able && self.ledger.take_lease(lease.as_ref(), &name())?;
            if taken {
                tracing::info!(
                    before = lease.and_then(|lease| lease.holder),
                    "this server trains and decides from now on"
                );
            } else {
                self.turn_off(TrainerState::Off, who_decides(lease.as_ref(), may));
            }
            Ok(taken)
        });
        taken.unwrap_or_else(|error| {
            tracing::warn!(%error, "who decides can't be told");
            // Whoever does may have been heard by nobody meanwhile.
            *watched = Watched::default();
            false
        })
    }

    /// Goes back to what is on record and follows it: another server decides now.
    pub(super) fn stand_down(&mut self) {
        tracing::warn!("another server trains and decides now; this one follows it");
        // What kept this one from learning is the other's to tell.
        for kind in [AlertKind::StepFails, AlertKind::NoRoom, AlertKind::NotTrained] {
            self.alerts.clear(kind);
        }
        if let Err(error) = self.forget_all() {
            tracing::error!(%error, "the version on record could not be served");
        }
    }
}

fn who_decides(lease: Option<&Lease>, may: bool) -> String {
    let who = match lease.and_then(|lease| lease.holder.as_ref()) {
        Some(holder) => format!("{holder} trains and decides"),
        None => "no server trains and decides".to_owned(),
    };
    let then = match may {
        true => "this one takes over when nobody does, once it serves what is on record",
        false => "this one only serves",
    };
    format!("{who}; {then} (serve.role)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, beat: u64) -> Lease {
        let json = serde_json::json!({ "term": 1, "beat": beat, "holder": holder });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_lease_is_free_when_it_was_given_back_or_shows_no_life_for_long() {
        let mut watched = Watched::default();
        assert!(watched.is_free(None) && watched.is_free(Some(&lease(None, 3))));
        assert!(!watched.is_free(Some(&lease(Some("ann"), 3))), "it was not watched before");
        let back = |watched: &mut Watched, by: Duration| {
            let (_, since) = watched.seen.as_mut().unwrap();
            *since = since.checked_sub(by).unwrap();
        };
        back(&mut watched, PATIENCE / 2);
        assert!(!watched.is_free(Some(&lease(Some("ann"), 3))));
        back(&mut watched, PATIENCE / 2);
        assert!(watched.is_free(Some(&lease(Some("ann"), 3))));
        assert!(!watched.is_free(Some(&lease(Some("ann"), 4))), "it lives");
        assert!(!watched.is_free(Some(&lease(Some("bob"), 4))));
    }
}
