//! Versions that are in an object store too, so that they outlive a machine and others can serve them. A folder of this
//! machine is what is served from; the store is where it comes from. Never decides which version serves.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::objects::Objects;
use super::{STAGING, VersionStore, at, name_of, remove_any};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::system::make_private_folder;
use crate::types::PolicyVersion;

/// The store, and what keeps two threads from fetching one version at the same time.
#[derive(Debug)]
pub(super) struct Shared {
    objects: Objects,
    fetching: Mutex<()>,
}

impl VersionStore {
    /// Has every version that is committed from now on written to an object store too, before it counts as committed.
    ///
    /// # Errors
    /// `Arg` for a URL that is none; `Unsupported` in a library without HTTP service.
    pub fn keep_also_in(mut self, url: &str) -> Result<Self> {
        self.shared = Some(Arc::new(Shared { objects: Objects::open(url)?, fetching: Mutex::default() }));
        Ok(self)
    }

    /// Fetches a version that has no folder here, if the object store has it; else does nothing. Its files are checked.
    ///
    /// # Errors
    /// `Io` for the store, the disk, or a file that is not what it should be.
    pub fn obtain(&self, version: PolicyVersion) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let _one = lock(&shared.fetching);
        if version == PolicyVersion::INITIAL || self.path(version).exists() {
            return Ok(());
        }
        self.beside("fetch", version, |file| {
            shared.objects.get(version, file)?;
            let stage = self.stage(version)?;
            let manifest = stage.unpack(file)?;
            if manifest.version != version {
                return Err(Error::io(format!("version {version} of the object store is {}", manifest.version)));
            }
            stage.put_in_place(manifest.about)?;
            tracing::info!(version = version.0, "version fetched from the object store");
            Ok(())
        })
    }

    /// Writes a committed version to the object store, if there is one.
    pub(super) fn share(&self, version: PolicyVersion) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        self.beside("share", version, |file| {
            self.pack(version, file)?;
            // What is there under a number that is not on record yet was left by a crash.
            shared.objects.remove(version)?;
            shared.objects.put(version, file)
        })
    }

    /// Removes a version from the object store, if there is one.
    pub(super) fn unshare(&self, version: PolicyVersion) -> Result<()> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.objects.remove(version))
    }

    /// A file in a folder that is gone afterwards, also if a crash comes between.
    fn beside(&self, what: &str, version: PolicyVersion, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        // Somebody may have removed it while this runs.
        at(&self.root, make_private_folder(&self.root))?;
        let folder = self.root.join(format!("{STAGING}{what}-{}", name_of(version)));
        remove_any(&folder)?;
        at(&folder, fs::create_dir(&folder))?;
        let done = work(&folder.join("version.tar"));
        remove_any(&folder)?;
        done
    }
}
