//! What a server does that shares its ledger with one that decides (`serve.role`), and what that one makes of what
//! people chose elsewhere. Serves what is on record; never trains, and never judges.

use super::*;
use crate::engine::routes::Split;

/// Whom to ask instead.
const ELSEWHERE: &str = "this server follows another one, which trains and decides (serve.role); ask that one";

impl Worker {
    /// Follows the record until the engine ends, or until this server decides: then it returns true.
    pub(super) fn follow_along(&mut self, orders: &Receiver<Order>, reminders: &Receiver<Order>) -> bool {
        let mut watched = lease::Watched::default();
        loop {
            if self.take_over(&mut watched) {
                return true;
            }
            let active = self.ledger.active();
            match active.as_ref().map(|active| self.follow(*active)) {
                Err(error) => tracing::warn!(%error, "the record can't be read: what serves goes on"),
                Ok(Ok(())) => self.alerts.clear(AlertKind::FellBack),
                Ok(Err(error)) => {
                    let said = format!(
                        "version {} serves, not what is on record: {error}; it is tried again every few seconds",
                        self.active
                    );
                    tracing::warn!("{said}");
                    self.alerts.raise(AlertKind::FellBack, said);
                }
            }
            let order = self.wait(orders, reminders).filter(|_| self.scheduler.is_open());
            let Some(order) = order else { return false };
            self.shared.interrupt.store(false, Ordering::Release);
            self.answer(order);
        }
    }

    fn answer(&mut self, order: Order) {
        let elsewhere = || Error::unsupported(ELSEWHERE);
        // Who asked may not wait any more.
        match order {
            Order::Due => {}
            // A person may choose at any server: it is on record, and the one that decides hears of it.
            Order::Activate(version, None, reply) => drop(reply.send(self.choose(version))),
            Order::Sync(reply) => {
                let newest = self.ledger.newest_servable();
                drop(reply.send(newest.and_then(|newest| self.choose(newest).map(|()| newest))));
            }
            Order::Activate(.., reply) => drop(reply.send(Err(elsewhere()))),
            Order::Step(reply) | Order::RollOut(reply) => drop(reply.send(Err(elsewhere()))),
            Order::Adopt(_, reply) => drop(reply.send(Err(elsewhere()))),
            Order::Unlearn(_, reply) => drop(reply.send(Err(elsewhere()))),
            Order::Restore(_, reply) => drop(reply.send(Err(elsewhere()))),
        }
    }

    fn choose(&mut self, version: PolicyVersion) -> Result<()> {
        // What can't be served here is not chosen for all.
        weights_of(&self.store, version)?;
        self.ledger.set_active_as(version, Decides::Person)?;
        self.follow(version)
    }

    /// Serves the version that is on record as active, and the candidate of a trial beside it.
    fn follow(&mut self, active: PolicyVersion) -> Result<()> {
        if active != self.active {
            self.scheduler.swap(weights_of(&self.store, active)?)?;
            self.now_serves(active);
        }
        let trial = self.ledger.trial()?.filter(|verdict| verdict.parent == active);
        let split = trial.and_then(|verdict| {
            let begun = VerdictRecord::of(&verdict).trial.map(|record| record.share);
            Some(Split { candidate: verdict.version?, share: begun.unwrap_or(self.config.gate.shares[0]) })
        });
        if let Some(left) = self.resumed.take_if(|left| split.is_none_or(|split| split.candidate != *left)) {
            self.routes.end();
            self.scheduler.leave(left)?;
        }
        if let Some(split) = split {
            if self.resumed.is_none() {
                self.scheduler.serve_beside(weights_of(&self.store, split.candidate)?)?;
                self.resumed = Some(split.candidate);
                self.routes.begin(split, &self.ledger.routes_of(split.candidate)?);
            }
            self.routes.widen(split);
        }
        self.let_go(&[active, split.map_or(active, |split| split.candidate)])
    }

    /// Removes folders of old versions here, and of those that had learned from a forgotten user.
    fn let_go(&self, needed: &[PolicyVersion]) -> Result<()> {
        self.store.prune(self.config.publish.keep, needed)?;
        let here = self.store.list()?;
        let unlearned = |v: &VersionInfo| v.ruling == Some(Ruling::Unlearned) && here.contains(&v.version);
        let known = if here.is_empty() { Vec::new() } else { self.ledger.versions()? };
        known.iter().filter(|v| unlearned(v)).try_for_each(|v| self.store.discard(v.version))
    }

    /// Takes over what a person chose at another server of the ledger.
    pub(super) fn hear(&mut self) -> Result<()> {
        if !self.ledger.is_shared() {
            return Ok(());
        }
        let active = self.ledger.active()?;
        if active == self.active {
            return Ok(());
        }
        self.scheduler.swap(weights_of(&self.store, active)?)?;
        self.now_serves(active);
        self.overrule_unlearning(active)?;
        self.trial_overruled(active)?;
        self.begin_watch()
    }
}
