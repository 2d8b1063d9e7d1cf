//! Which version the learner continues from: activates, restores, and loads versions into the trainer. Never trains.

use super::*;
use crate::gate::{Examination, Outcome};
use crate::ledger::TrainedBatch;

impl Worker {
    /// Loads the trainer's state from the active version's folder, or starts from the initial model.
    pub(super) fn load_trainer(&mut self) -> Result<()> {
        let version = self.active;
        self.load_state(&self.store.clone(), version)
    }

    /// Loads the trainer's state from a version's folder of `store`, or starts from the initial model.
    pub(super) fn load_state(&mut self, store: &VersionStore, version: PolicyVersion) -> Result<()> {
        self.noted.clear();
        if let Some(replay) = &mut self.unlearning {
            replay.loaded = false;
        }
        let Some(Ready { decoder, judge, trainer, .. }) = &mut self.ready else { return Ok(()) };
        *trainer = None;
        let (decoder, config) = (decoder.clone(), &self.config.train);
        let folder = (version != PolicyVersion::INITIAL).then(|| store.path(version));
        if folder.is_some() {
            store.obtain(version)?;
            store.verify(version)?;
        }
        judge.load(folder.as_deref())?;
        let mut loaded = match folder {
            None => Trainer::new(decoder, config)?,
            Some(folder) => {
                if trainer::OPTIMIZER_FILES.iter().all(|name| !folder.join(name).exists()) {
                    tracing::warn!(
                        version = version.0,
                        "the version's critic and moments were let go (publish.keep_states): training goes on from \
                         its adapter with fresh ones"
                    );
                }
                Trainer::load(decoder, config, &folder)?
            }
        };
        loaded.keep_before_in(&self.config.data);
        *trainer = Some(loaded);
        Ok(())
    }

    pub(super) fn about(&self, info: &VersionInfo) -> About {
        let TrainConfig { algorithm, rank, alpha, .. } = self.config.train;
        About {
            parent: info.parent,
            base_sha256: self.base_sha256.clone(),
            created: info.created,
            algorithm,
            lambda: self.config.train.temperature(),
            rank,
            alpha,
            metrics: info.metrics.clone(),
        }
    }

    /// Serves a version that a person chose.
    pub(super) fn activate(&mut self, version: PolicyVersion, whole: Option<PathBuf>) -> Result<()> {
        if let Some(replay) = &self.unlearning {
            replay.may_serve(version)?;
        }
        self.serve_as(version, whole, Decides::Person)?;
        self.overrule_unlearning(version)?;
        self.trial_overruled(version)?;
        self.begin_watch()
    }

    /// Serves a version as adapter, and trains on from it.
    pub(super) fn serve(&mut self, version: PolicyVersion) -> Result<()> {
        self.serve_as(version, None, Decides::Nothing)
    }

    /// The same, or as whole weights; what that decides about verdicts is on record with it.
    pub(super) fn serve_as(&mut self, version: PolicyVersion, whole: Option<PathBuf>, decides: Decides) -> Result<()> {
        let mut weights = weights_of(&self.store, version)?;
        if let Some(path) = whole {
            weights.source = Source::Whole(path);
        }
        self.scheduler.swap(weights)?;
        if let Err(error) = self.ledger.set_active_as(version, decides) {
            // Serve the version on record, or a restart would change the answers.
            self.scheduler.swap(weights_of(&self.store, self.active)?)?;
            return Err(error);
        }
        self.now_serves(version);
        Ok(())
    }

    /// What follows from serving another version, which is on record.
    pub(super) fn now_serves(&mut self, version: PolicyVersion) {
        self.active = version;
        // What had to wait for others may not have to beside another version.
        self.waiting = None;
        self.retry.reset();
        self.alerts.clear(AlertKind::FellBack);
        self.reload();
        self.tell(|| News::VersionActivated { version });
        tracing::info!(version = version.0, "version activated");
    }

    /// Serves the newest version on record, looked up here because a step may have published one meanwhile.
    pub(super) fn sync(&mut self) -> Result<PolicyVersion> {
        let newest = self.ledger.newest_servable()?;
        if self.scheduler.load().versions.last() != Some(&newest) {
            self.activate(newest, None)?;
        }
        Ok(newest)
    }

    /// Reloads the trainer from the active version, if it can be trained.
    pub(super) fn reload(&mut self) {
        let version = self.active;
        if let Err(error) = self.load_trainer() {
            let reason = format!("version {version} is served but can't be trained: {error}");
            let wayout = match version {
                // It has no files of its own.
                PolicyVersion::INITIAL => "once that is changed, a restart trains it".to_owned(),
                _ => format!(
                    "once its files are restored, `apad versions activate {version}` trains it again, and so does \
                     activating a version whose files are whole (`apad versions verify`)"
                ),
            };
            self.alerts.raise(AlertKind::NotTrained, format!("{reason}; {wayout}"));
            self.turn_off(TrainerState::Off, reason);
        } else if self.trainer().is_some() {
            self.alerts.clear(AlertKind::NotTrained);
            let mut status = self.shared.status();
            status.state = TrainerState::Idle;
            status.reason = None;
        }
    }

    pub(super) fn restore(&mut self, path: &Path) -> Result<PolicyVersion> {
        if self.unlearning.is_some() {
            return Err(Error::busy("a user is being unlearned; a snapshot can be restored afterwards"));
        }
        let (version, parent, created) = (self.ledger.next_version()?, self.active, unix_millis());
        let stage = self.store.stage(version)?;
        let mut about = stage.unpack(path)?.about;
        if about.base_sha256 != self.base_sha256 {
            return Err(Error::model(format!(
                "the snapshot is for another base model (sha256 {:.12}, this one has {:.12})",
                about.base_sha256, self.base_sha256
            )));
        }
        (about.parent, about.created) = (Some(parent), created);
        let (examination, seconds) = self.examine(version, stage.path(), 1)?.unzip();
        let (learns, examined) = (self.config.train.enabled, self.config.gate.examine);
        if learns && examined && examination.is_none() {
            let reason = self.shared.status().reason.clone().unwrap_or_else(|| NOT_READY.into());
            return Err(Error::unsupported(format!(
                "the snapshot can't be examined ({reason}), and so is not served; gate.examine = false serves it \
                 unexamined"
            )));
        }
        if let Some(Examination { outcome: Outcome::Refused, reason, .. }) = &examination {
            let record =
                VerdictRecord { reason: reason.clone(), examination: examination.clone(), seconds, trial: None };
            self.ledger.add_verdict(None, parent, Ruling::Refused, record.json())?;
            return Err(Error::model(format!("the snapshot was refused: {reason}")));
        }
        let info = VersionInfo {
            version,
            parent: Some(parent),
            active: true,
            created,
            metrics: about.metrics.clone(),
            ruling: None,
        };
        stage.commit(about)?;
        if let Err(error) = self.ledger.commit_version(&info, TrainedBatch::default()) {
            self.withdraw(&info);
            return Err(error);
        }
        if let Err(error) = self.scheduler.swap(weights_of(&self.store, version)?) {
            // It stays listed, but the next start does not open it.
            self.ledger.set_active(parent)?;
            return Err(error);
        }
        let said = match &examination {
            Some(examination) => examination.reason.as_str(),
            None if learns => "it was not examined (gate.examine)",
            None => "it was not examined, as nothing is trained here (train.enabled)",
        };
        let reason = format!("a person restored it; {said}");
        let record = VerdictRecord { reason, examination, seconds, trial: None };
        self.ledger.add_verdict(Some(version), parent, Ruling::Promoted, record.json())?;
        self.active = version;
        self.reload();
        self.trial_overruled(version)?;
        self.begin_watch()?;
        self.tell(|| News::VersionPublished { version, parent });
        tracing::info!(version = version.0, "version restored");
        Ok(version)
    }

    /// Frees the number of a version whose files were written but whose record failed.
    pub(super) fn withdraw(&self, info: &VersionInfo) {
        match self.ledger.made(info.version) {
            Ok(Some(made)) if made == info.created => {}
            // Another server's, if there is one of its number.
            Ok(_) => {
                if let Err(error) = self.store.withdraw(info.version) {
                    tracing::warn!(%error, "a version that was not recorded is still on disk");
                }
            }
            Err(error) => tracing::warn!(%error, "a version that may not be recorded stays on disk"),
        }
    }

    /// Removes old versions, and of others what only training needs, as configured; never one that is served, that is
    /// on trial, that waits for a person, or that a rollback goes to.
    pub(super) fn prune(&self) {
        if let Err(error) = self.try_prune() {
            tracing::warn!(%error, "old versions are not removed");
        }
    }

    fn try_prune(&self) -> Result<()> {
        let mut needed = self.scheduler.load().versions;
        needed.push(self.active);
        needed.extend(self.ledger.versions()?.iter().find(|v| v.version == self.active).and_then(|v| v.parent));
        needed.extend(self.ledger.open_candidates()?);
        let config = &self.config.publish;
        let slimmed = self.store.slim(config.keep_states, &trainer::OPTIMIZER_FILES, &needed)?;
        needed.extend(config.pinned().into_iter().map(PolicyVersion));
        // Noted first: afterwards nothing would tell them from versions that were lost.
        self.ledger.note_removed(&self.store.older(config.keep, &needed)?)?;
        let removed = self.store.prune(config.keep, &needed)?;
        if !slimmed.is_empty() || !removed.is_empty() {
            let (states, versions) = (slimmed.len(), removed.len());
            tracing::info!(states, versions, "old versions and training states removed (publish.keep, keep_states)");
        }
        Ok(())
    }
}
