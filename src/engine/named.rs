//! Versions that requests ask for by number: each is served beside the active one for as long as its answers take, one
//! version at a time. Never changes what others get.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::weights::weights_of;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::publish::VersionStore;
use crate::scheduler::Scheduler;
use crate::types::PolicyVersion;

/// Longest wait for a context that is free.
const PATIENCE: Duration = Duration::from_secs(10);

/// The version that is served because requests name it.
pub(super) struct Named {
    scheduler: Arc<Scheduler>,
    store: VersionStore,
    held: Mutex<Option<(PolicyVersion, Weak<Held>)>>,
}

/// Keeps a version in serving; dropped with the last answer that asked for it.
struct Held {
    scheduler: Arc<Scheduler>,
    version: PolicyVersion,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Only refused when the engine closes.
        let _ = self.scheduler.leave(self.version);
    }
}

impl Named {
    pub(super) fn new(scheduler: Arc<Scheduler>, store: VersionStore) -> Self {
        Self { scheduler, store, held: Mutex::default() }
    }

    /// Serves the version for as long as what is returned is held. Blocks while its weights are loaded.
    ///
    /// # Errors
    /// `Busy` while another version is held or all contexts are in use, `Io` or `Model` if its files are gone or
    /// damaged, `Closed`.
    pub(super) fn hold(&self, version: PolicyVersion) -> Result<Arc<dyn Send + Sync>> {
        let mut held = lock(&self.held);
        if let Some((other, keep)) = held.as_ref().and_then(|(version, keep)| Some((*version, keep.upgrade()?))) {
            if other == version {
                return Ok(keep);
            }
            return Err(Error::busy(format!(
                "version {other} is answering because it was asked for, and only one at a time is served beside the \
                 active one: ask for version {version} when it has ended"
            )));
        }
        self.scheduler.serve_beside_within(weights_of(&self.store, version)?, PATIENCE)?;
        let keep = Arc::new(Held { scheduler: self.scheduler.clone(), version });
        *held = Some((version, Arc::downgrade(&keep)));
        Ok(keep)
    }
}
