//! Versions that are in an object store too, so that they outlive a machine and others can serve them. A folder of this
//! machine is what is served from; the store is where it comes from. Never decides which version serves.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::objects::Objects;
use super::{About, Manifest, STAGING, VersionStore, at, name_of, remove_any};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::system::make_private_folder;
use crate::types::{PolicyVersion, UnixMillis};

/// The store, and what keeps two threads from fetching one version at the same time.
pub(super) struct Shared {
    objects: Objects,
    /// When a version was made, by the record; none if that doesn't know it.
    made: Box<dyn Fn(PolicyVersion) -> Result<Option<UnixMillis>> + Send + Sync>,
    fetching: Mutex<()>,
    /// What was written last.
    written: Mutex<Option<(PolicyVersion, String)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.objects.fmt(f)
    }
}

/// Asks an object store whether it can be read, and returns its URL; nothing is made.
///
/// # Errors
/// `Arg` for a URL that is none; `Unsupported` in a library without HTTP service; `Io` for a store that can't be read.
pub fn store_answers(url: &str) -> Result<String> {
    Objects::open(url)?.names(PolicyVersion(1)).map(|_| url.to_owned())
}

impl VersionStore {
    /// Has every version that is committed from now on written to an object store too, before it counts as committed.
    /// `made` tells the time of a version on record, by which it is known from another of its number, which a server
    /// made that had lost the right to.
    ///
    /// # Errors
    /// `Arg` for a URL that is none; `Unsupported` in a library without HTTP service.
    pub fn keep_also_in(
        mut self,
        url: &str,
        made: impl Fn(PolicyVersion) -> Result<Option<UnixMillis>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (objects, made) = (Objects::open(url)?, Box::new(made));
        self.shared = Some(Arc::new(Shared { objects, made, fetching: Mutex::default(), written: Mutex::default() }));
        Ok(self)
    }

    /// Fetches a version that has no folder here, if the object store has it; else does nothing. Its files are checked.
    ///
    /// # Errors
    /// `Io` for the store, the disk, or a file that is not what it should be.
    pub fn obtain(&self, version: PolicyVersion) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let _one = lock(&shared.fetching);
        if version == PolicyVersion::INITIAL {
            return Ok(());
        }
        // While the record is away, what is here is served.
        let made = (shared.made)(version).unwrap_or_default();
        let meant = |about: &About| made.is_none_or(|made| made == about.created);
        if self.path(version).exists() {
            // What is damaged is told of by those who verify it.
            if Manifest::read(&self.path(version)).map_or(true, |manifest| meant(&manifest.about)) {
                return Ok(());
            }
            tracing::warn!(version = version.0, "a version of this number that is not the one on record is removed");
            self.remove(&name_of(version))?;
        }
        let names = shared.objects.names(version)?;
        if made.is_none() && names.len() > 1 {
            return Err(Error::io(format!("the object store has several files of version {version}, expected one")));
        }
        let mut failed = shared.objects.lacks(version);
        for name in names {
            match self.fetch(shared, version, &name, meant) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Fetches a file of a version; false if it is not the one that is meant.
    fn fetch(
        &self,
        shared: &Shared,
        version: PolicyVersion,
        name: &str,
        meant: impl Fn(&About) -> bool,
    ) -> Result<bool> {
        self.beside("fetch", version, |file| {
            shared.objects.get(version, name, file)?;
            let stage = self.stage(version)?;
            let manifest = stage.unpack(file)?;
            if manifest.version != version {
                return Err(Error::io(format!("version {version} of the object store is {}", manifest.version)));
            }
            if !meant(&manifest.about) {
                return Ok(false);
            }
            stage.put_in_place(manifest.about)?;
            tracing::info!(version = version.0, "version fetched from the object store");
            Ok(true)
        })
    }

    /// Writes a committed version to the object store, if there is one.
    pub(super) fn share(&self, version: PolicyVersion) -> Result<()> {
        let Some(shared) = &self.shared else { return Ok(()) };
        self.beside("share", version, |file| {
            self.pack(version, file)?;
            let name = shared.objects.put(version, file)?;
            *lock(&shared.written) = Some((version, name));
            Ok(())
        })
    }

    /// Removes what this process committed last, if it is that version: it could not be recorded. Of others that have
    /// its number nothing is removed.
    ///
    /// # Errors
    /// `Io` for the disk and the store.
    pub fn withdraw(&self, version: PolicyVersion) -> Result<()> {
        if let Some(shared) = &self.shared {
            let written = lock(&shared.written).take_if(|(of, _)| *of == version);
            written.map_or(Ok(()), |(_, name)| shared.objects.remove_one(version, &name))?;
        }
        if self.path(version).exists() { self.remove(&name_of(version)) } else { Ok(()) }
    }

    /// Removes a version from the object store, if there is one.
    pub(super) fn unshare(&self, version: PolicyVersion) -> Result<()> {
        self.shared.as_ref().map_or(Ok(()), |shared| shared.objects.remove(version))
    }

    /// A file in a folder that is gone afterwards, also if a crash comes between.
    fn beside<T>(&self, what: &str, version: PolicyVersion, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
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
