//! Training on demand, and the choice of the version that is served. Never trains on the caller's thread.

use std::path::{Path, PathBuf};

use super::archive::{self, Adopted, AsideVersion, VersionRecord};
use super::{Engine, PublishOutcome};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::overwrite::check_output;
use crate::types::{PolicyVersion, StoredVerdict, VersionInfo};

impl Engine {
    /// Trains on the waiting ratings (at most one batch, even a small one), publishes, and returns once the new version
    /// is served.
    ///
    /// # Errors
    /// `Train` or `Unsupported` with the reason; serving goes on.
    pub fn train_step(&self) -> Result<PublishOutcome> {
        self.check_open()?;
        self.inner.learner.step()
    }

    /// Samples answers of the active version to the prompts of `reward.rollouts`, has the reward model score them,
    /// trains on them and on waiting feedback, publishes, and returns once the new version is served.
    ///
    /// # Errors
    /// `Arg` without `reward.rollouts` or a reward model; else as [`Engine::train_step`].
    pub fn roll_out(&self) -> Result<PublishOutcome> {
        self.check_open()?;
        self.inner.learner.roll_out()
    }

    /// Lets the engine train by itself whenever there are enough ratings, as with `train.auto`.
    ///
    /// # Errors
    /// `Unsupported` if training is switched off, `Closed`.
    pub fn start_trainer(&self) -> Result<()> {
        self.check_open()?;
        if !self.inner.config.train.enabled {
            return Err(Error::unsupported("training is switched off (train.enabled)"));
        }
        self.inner.learner.set_auto(true);
        self.learn_if_due();
        Ok(())
    }

    /// Lets the engine train only by [`Engine::train_step`] from now on; ratings are kept. Returns without waiting for
    /// a step that is running.
    ///
    /// # Errors
    /// `Closed`.
    pub fn stop_trainer(&self) -> Result<()> {
        self.check_open()?;
        self.inner.learner.set_auto(false);
        Ok(())
    }

    /// All versions, oldest first.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        self.inner.ledger.versions()
    }

    /// A version with its verdict and its lineage.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` if the ledger can't be read.
    pub fn version(&self, version: PolicyVersion) -> Result<VersionRecord> {
        archive::record(&self.inner.store, &self.inner.ledger, version)
    }

    /// The newest verdicts on candidates, at most `max`, the newest first, including candidates that were refused
    /// before they became a version.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn verdicts(&self, max: usize) -> Result<Vec<StoredVerdict>> {
        self.inner.ledger.verdicts(max)
    }

    /// Serves `version` from now on; running requests finish on their version. Training continues from it. A running
    /// training step is aborted, and its ratings keep waiting.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` or `Model` if its files are gone or damaged.
    pub fn activate(&self, version: PolicyVersion) -> Result<()> {
        self.check_open()?;
        self.check_version(version)?;
        self.inner.learner.activate(version, None)
    }

    /// The same with the version's weights merged into a whole model, which serves without the cost of an adapter: the
    /// file `whole/VERSION.gguf` of the data folder, as `apad export` writes it. It is swapped in like an adapter; the
    /// next start serves the adapter.
    ///
    /// # Errors
    /// As [`Engine::activate`]; `Arg` if there is no such file or it is of another architecture or vocabulary, `NoMem`
    /// if it doesn't fit into what memory is free.
    pub fn activate_whole(&self, version: PolicyVersion) -> Result<()> {
        self.check_open()?;
        self.check_version(version)?;
        let path = self.inner.config.data.join("whole").join(format!("{version}.gguf"));
        if !path.is_file() {
            return Err(Error::arg(format!("there is no file whole/{version}.gguf in the data folder")));
        }
        self.inner.learner.activate(version, Some(path))
    }

    pub(super) fn check_version(&self, version: PolicyVersion) -> Result<()> {
        archive::info_of(&self.versions()?, version).map(drop)
    }

    /// Brings the newest version on record into serving and returns it. Does nothing if it is already active; else as
    /// [`Engine::activate`].
    ///
    /// # Errors
    /// `Io` or `Model` if its files are gone or damaged; the present version is served on then. `Closed`.
    pub fn sync(&self) -> Result<PolicyVersion> {
        self.check_open()?;
        let newest = self.inner.ledger.newest_servable()?;
        if self.status().policy_version == newest {
            return Ok(newest);
        }
        self.inner.learner.sync()
    }

    /// Activates the parent of the active version and returns it.
    ///
    /// # Errors
    /// `Arg` if the initial model is active; else as [`Engine::activate`].
    pub fn rollback(&self) -> Result<PolicyVersion> {
        let parent = archive::parent_of_active(&self.versions()?)?;
        self.activate(parent)?;
        Ok(parent)
    }

    /// Trained versions that the record doesn't know; they lie in `versions/aside`.
    ///
    /// # Errors
    /// `Io` if the folder can't be read.
    pub fn set_aside(&self) -> Result<Vec<AsideVersion>> {
        archive::aside(&self.inner.store)
    }

    /// Adopts the version that was set aside under that name, or all of them. None is activated. A running training
    /// step is aborted, and its ratings keep waiting.
    ///
    /// # Errors
    /// `Arg` for an unknown name; where none could be adopted, why not the first: `Model` for a version of another
    /// base, `Io` if it is damaged or the disk fails.
    pub fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        self.check_open()?;
        self.inner.learner.adopt(name)
    }

    /// Writes the files of a version into one file, which another data folder with the same base model can restore.
    ///
    /// # Errors
    /// `Arg` for an unknown version, or 0, which has no files, and for a `path` that is the model, the engine's own, or
    /// no regular file; `Io` if the files are gone or damaged, or `path` can't be written.
    pub fn snapshot(&self, version: PolicyVersion, path: &Path) -> Result<()> {
        self.check_open()?;
        let Config { model, data, .. } = &self.inner.config;
        let own = ["ledger.sqlite3", "lock", "reserve", "versions", "reward", "whole"].map(|name| data.join(name));
        let inputs: Vec<&Path> = own.iter().chain([model]).map(PathBuf::as_path).collect();
        self.inner.store.pack(version, &check_output(path, &inputs)?)
    }

    /// Reads a file of [`Engine::snapshot`] as a new version, a child of the active one, and serves it. A running
    /// training step is aborted, and its ratings keep waiting.
    ///
    /// # Errors
    /// `Io` if the file can't be read or is damaged, `Model` if it belongs to another base model or can't be served.
    pub fn restore(&self, path: &Path) -> Result<PolicyVersion> {
        self.check_open()?;
        self.inner.learner.restore(path)
    }
}
