//! Policy versions on disk: one folder each, written under a temporary name, synced and renamed. Never edits or
//! overwrites a committed folder, and never decides which version serves.

mod aside;
mod manifest;
#[cfg_attr(not(feature = "daemon"), path = "no_objects.rs")]
mod objects;
mod portable;
mod shared;
#[cfg(all(test, feature = "daemon"))]
mod shared_tests;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::system::make_private_folder;
use crate::types::PolicyVersion;
pub use aside::Aside;
use manifest::MANIFEST;
pub use manifest::{About, FileSum, Manifest, sha256_file};
use shared::Shared;
pub use shared::store_answers;

/// Prefix of folders that are being written.
const STAGING: &str = ".staging-";
/// Prefix of folders that are being deleted: half a version must never look like a whole one.
const REMOVING: &str = ".removing-";

/// The folder `versions/` of a data folder. The data folder's lock must be held, since two stores in one folder would
/// race.
#[derive(Clone, Debug)]
pub struct VersionStore {
    root: PathBuf,
    /// Where versions are kept as well.
    shared: Option<Arc<Shared>>,
}

/// A version that is being written. Dropped without a commit, it leaves nothing behind.
#[derive(Debug)]
pub struct Stage {
    store: VersionStore,
    version: PolicyVersion,
    /// Where the files are now; removed unless committed.
    staging: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl VersionStore {
    /// Opens `versions/` in a data folder, and makes it if missing.
    ///
    /// # Errors
    /// `Io` if it can't be made.
    pub fn open(dir: &Path) -> Result<Self> {
        let root = dir.join("versions");
        at(&root, make_private_folder(&root))?;
        sync_dir(dir)?;
        Ok(Self { root, shared: None })
    }

    /// The name of a committed version's folder.
    pub fn name(&self, version: PolicyVersion) -> String {
        name_of(version)
    }

    /// The folder of a committed version.
    pub fn path(&self, version: PolicyVersion) -> PathBuf {
        self.root.join(name_of(version))
    }

    /// Starts writing a version, in an empty folder beside the others.
    ///
    /// # Errors
    /// `Arg` for version 0 or one that already exists, `Io` for the disk.
    pub fn stage(&self, version: PolicyVersion) -> Result<Stage> {
        if version == PolicyVersion::INITIAL {
            return Err(Error::arg("version 0 is the initial model and has no files"));
        }
        let target = self.path(version);
        if target.exists() {
            return Err(Error::arg(format!(
                "version {version} is on disk already, and not on record: a start of the engine sets it aside"
            )));
        }
        let staging = self.root.join(format!("{STAGING}{}", name_of(version)));
        remove_any(&staging)?; // What a crash left.
        at(&staging, fs::create_dir(&staging))?;
        Ok(Stage { store: self.clone(), version, staging, target, committed: false })
    }

    /// Checks every file of a version, and returns its manifest.
    ///
    /// # Errors
    /// `Arg` if there is no such version here, `Io` naming the file that is missing or damaged, `Unsupported` for a
    /// manifest of a newer format.
    pub fn verify(&self, version: PolicyVersion) -> Result<Manifest> {
        let path = self.path(version);
        if version == PolicyVersion::INITIAL || !path.is_dir() {
            return Err(Error::arg(format!("version {version} has no files on disk")));
        }
        manifest::verify(&path, version).map_err(|e| e.context(format!("version {version}")))
    }

    /// The versions that have a folder, oldest first.
    ///
    /// # Errors
    /// `Io` if the folder can't be read.
    pub fn list(&self) -> Result<Vec<PolicyVersion>> {
        let mut versions: Vec<_> = self.names()?.iter().filter_map(|name| committed(name)).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// Checks one file of a version, and returns its manifest.
    ///
    /// # Errors
    /// As [`VersionStore::verify`], for that file alone; `Io` also if the manifest doesn't list it.
    pub fn verify_file(&self, version: PolicyVersion, name: &str) -> Result<Manifest> {
        let path = self.path(version);
        if version == PolicyVersion::INITIAL || !path.is_dir() {
            return Err(Error::arg(format!("version {version} has no files on disk")));
        }
        manifest::verify_file(&path, version, name).map_err(|e| e.context(format!("version {version}")))
    }

    /// Removes folders that a crash left half written or half deleted, but never a version. Returns their names.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn remove_leftovers(&self) -> Result<Vec<String>> {
        let mut names = self.names()?;
        names.retain(|name| name.starts_with(STAGING) || name.starts_with(REMOVING));
        for name in &names {
            self.remove(name)?;
            tracing::info!(name, "what an interrupted write left among the versions is removed");
        }
        Ok(names)
    }

    /// Removes a version here and in the object store, which nobody may have any more.
    ///
    /// # Errors
    /// `Io` for the disk and the store.
    pub fn discard(&self, version: PolicyVersion) -> Result<()> {
        self.unshare(version)?;
        if self.path(version).exists() { self.remove(&name_of(version)) } else { Ok(()) }
    }

    /// Removes versions older than the newest `keep`, except `protected` ones. 0 keeps all. Returns the removed
    /// versions.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn prune(&self, keep: u32, protected: &[PolicyVersion]) -> Result<Vec<PolicyVersion>> {
        let versions = self.older(keep, protected)?;
        for version in &versions {
            self.remove(&name_of(*version))?;
        }
        Ok(versions)
    }

    /// Lets go of the files `names` of versions older than the newest `keep`, but for `protected` ones, which stay
    /// whole. 0 keeps all. The manifest no longer lists them then. Returns the versions of which something was let go.
    ///
    /// # Errors
    /// `Io` for the disk, and for a damaged manifest: what was let go before stays so.
    pub fn slim(&self, keep: u32, names: &[&str], protected: &[PolicyVersion]) -> Result<Vec<PolicyVersion>> {
        let mut versions = self.older(keep, protected)?;
        versions.retain(|version| names.iter().any(|name| self.path(*version).join(name).exists()));
        for version in &versions {
            let path = self.path(*version);
            manifest::leave_out(&path, *version, names).map_err(|e| e.context(format!("version {version}")))?;
            // A crash between two of them leaves files that no manifest lists; the next time removes them.
            names.iter().try_for_each(|name| remove_any(&path.join(name)))?;
        }
        Ok(versions)
    }

    /// Versions older than the newest `keep`, but for `protected` ones; none where all are kept.
    ///
    /// # Errors
    /// `Io` if the folder can't be read.
    pub fn older(&self, keep: u32, protected: &[PolicyVersion]) -> Result<Vec<PolicyVersion>> {
        let mut versions = self.list()?;
        versions.truncate(if keep == 0 { 0 } else { versions.len().saturating_sub(keep as usize) });
        versions.retain(|version| !protected.contains(version));
        Ok(versions)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = at(&self.root, fs::read_dir(&self.root))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = at(&self.root, entry)?;
            // Links and names that are not UTF-8 are not ours.
            let folder = at(&self.root, entry.file_type())?.is_dir();
            names.extend(entry.file_name().into_string().ok().filter(|_| folder));
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> Result<()> {
        let mut path = self.root.join(name);
        if !name.starts_with('.') {
            let aside = self.root.join(format!("{REMOVING}{name}"));
            remove_any(&aside)?;
            at(&path, fs::rename(&path, &aside))?;
            sync_dir(&self.root)?;
            path = aside;
        }
        at(&path, fs::remove_dir_all(&path))
    }
}

impl Stage {
    /// The folder to write files into; plain files only.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// Writes the manifest, syncs everything, and renames the folder into place; then writes it to the object store, if
    /// there is one. Returns the folder.
    ///
    /// # Errors
    /// `Arg` if the folder has no file, or something that is not a plain file; `Io` for the disk and the store. Nothing
    /// is left behind here then.
    pub fn commit(self, about: About) -> Result<PathBuf> {
        let (store, version) = (self.store.clone(), self.version);
        let path = self.put_in_place(about)?;
        if let Err(error) = store.share(version) {
            store.remove(&name_of(version))?;
            return Err(error);
        }
        Ok(path)
    }

    fn put_in_place(mut self, about: About) -> Result<PathBuf> {
        let files = manifest::sum_files(&self.staging)?;
        if files.is_empty() {
            return Err(Error::arg(format!("version {} has no files, expected an adapter", self.version)));
        }
        let text = Manifest::new(self.version, about, files).to_json()?;
        let path = self.staging.join(MANIFEST);
        at(&path, fs::write(&path, text))?;
        for entry in at(&self.staging, fs::read_dir(&self.staging))? {
            let path = at(&self.staging, entry)?.path();
            at(&path, File::open(&path).and_then(|f| f.sync_all()))?;
        }
        sync_dir(&self.staging)?;
        if self.target.exists() {
            return Err(Error::arg(format!("version {} is on disk already", self.version)));
        }
        at(&self.target, fs::rename(&self.staging, &self.target))?;
        // From here on a failure removes the renamed folder, since the rename may not be durable.
        self.staging.clone_from(&self.target);
        if let Some(root) = self.target.parent() {
            sync_dir(root)?;
        }
        self.committed = true;
        Ok(self.target.clone())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_dir_all(&self.staging)
        {
            tracing::warn!(%error, path = %self.staging.display(), "a staged version could not be removed");
        }
    }
}

fn name_of(version: PolicyVersion) -> String {
    format!("{:06}", version.0)
}

/// Removes the file, link or folder at a path, if there is one.
fn remove_any(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => at(path, fs::remove_dir_all(path)),
        Ok(_) => at(path, fs::remove_file(path)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => at(path, Err(e)),
    }
}

/// The version that a folder's name stands for.
fn committed(name: &str) -> Option<PolicyVersion> {
    let version = name.parse().ok()?;
    // Only the spelling that we write: `12` and `+00012` are not ours.
    (format!("{version:06}") == name && version > 0).then_some(PolicyVersion(version))
}

fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| Error::from(e).context(path.display()))
}

/// Syncs a folder, which makes its names durable. (Windows has no such call, and needs none.)
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) { at(dir, File::open(dir).and_then(|f| f.sync_all())) } else { Ok(()) }
}
