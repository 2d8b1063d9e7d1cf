//! Policy versions on disk: one folder each, written under a temporary name, synced and renamed. Never edits or
//! overwrites a committed folder, and never decides which version serves.

mod aside;
mod manifest;
mod portable;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::system::make_private_folder;
use crate::types::PolicyVersion;
pub use aside::Aside;
use manifest::MANIFEST;
pub use manifest::{About, FileSum, Manifest, sha256_file};

/// Prefix of folders that are being written.
const STAGING: &str = ".staging-";
/// Prefix of folders that are being deleted: half a version must never look like a whole one.
const REMOVING: &str = ".removing-";

/// The folder `versions/` of a data folder. The data folder's lock must be held, since two stores in one folder would
/// race.
#[derive(Clone, Debug)]
pub struct VersionStore {
    root: PathBuf,
}

/// A version that is being written. Dropped without a commit, it leaves nothing behind.
#[derive(Debug)]
pub struct Stage {
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
        Ok(Self { root })
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
            return Err(Error::arg(format!("version {version} is on disk already: {}", target.display())));
        }
        let staging = self.root.join(format!("{STAGING}{}", name_of(version)));
        remove_any(&staging)?; // What a crash left.
        at(&staging, fs::create_dir(&staging))?;
        Ok(Stage { version, staging, target, committed: false })
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
        }
        Ok(names)
    }

    /// Removes a version that was just written but could not be recorded, so that its number is free for the next try.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn discard(&self, version: PolicyVersion) -> Result<()> {
        self.remove(&name_of(version))
    }

    /// Removes versions older than the newest `keep`, except `protected` ones. 0 keeps all. Returns the removed versions.
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
    fn older(&self, keep: u32, protected: &[PolicyVersion]) -> Result<Vec<PolicyVersion>> {
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

    /// Writes the manifest, syncs everything, and renames the folder into place. Returns the folder.
    ///
    /// # Errors
    /// `Arg` if the folder has no file, or something that is not a plain file; `Io` for the disk. Nothing is left
    /// behind then.
    pub fn commit(mut self, about: About) -> Result<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Algorithm;
    use crate::types::{Nats, StepMetrics};

    fn about() -> About {
        let metrics = StepMetrics { mean_reward: 0.25, kl_per_response: Nats(1.5), ..StepMetrics::default() };
        About {
            parent: Some(PolicyVersion(0)),
            base_sha256: "ab".repeat(32),
            created: 1_700_000_000_000,
            algorithm: Algorithm::Apa,
            lambda: 0.1,
            rank: 16,
            alpha: 32.0,
            metrics,
        }
    }

    pub(super) fn store() -> (tempfile::TempDir, VersionStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = VersionStore::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_version_is_carried_to_another_folder_in_one_file() {
        let ((dir, from), (_other, to)) = (store(), store());
        publish(&from, 3);
        let file = dir.path().join("version.tar");
        from.pack(PolicyVersion(3), &file).unwrap();
        let stage = to.stage(PolicyVersion(1)).unwrap();
        let manifest = stage.unpack(&file).unwrap();
        assert_eq!((manifest.version, &manifest.about), (PolicyVersion(3), &about()));
        let path = stage.commit(manifest.about).unwrap();
        assert_eq!(fs::read_to_string(path.join("adapter.gguf")).unwrap(), "weights of 3");
        to.verify(PolicyVersion(1)).unwrap();
        assert!(from.pack(PolicyVersion(4), &dir.path().join("none")).is_err());
        assert!(from.pack(PolicyVersion(3), &dir.path().join("no/folder")).is_err());
    }

    #[test]
    fn a_snapshot_that_is_cut_damaged_or_none_is_refused_and_leaves_nothing() {
        let (dir, store) = store();
        publish(&store, 3);
        let file = dir.path().join("version.tar");
        store.pack(PolicyVersion(3), &file).unwrap();
        let whole = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let stage = store.stage(PolicyVersion(4)).unwrap();
            let error = stage.unpack(&file).unwrap_err();
            assert_eq!(error.code(), crate::Code::Io, "{error}");
            error.message().to_owned()
        };
        for length in [0, 1, 511, 512, 600, 1024, 2048] {
            refused(&whole[..length.min(whole.len() - 1024)]);
        }
        let place = whole.windows(12).position(|w| w == b"weights of 3").unwrap();
        let mut damaged = whole.clone();
        damaged[place] = b'W';
        assert!(refused(&damaged).contains("adapter.gguf is damaged"));
        let text = String::from_utf8_lossy(&whole).replacen("\"critic.gguf\"", "\"../tic.gguf\"", 1);
        assert!(refused(text.as_bytes()).contains("plain file name"));
        assert!(refused(b"hello").contains("not a snapshot"));
        assert_eq!(store.list().unwrap(), versions(&[3]));
    }

    pub(super) fn publish(store: &VersionStore, version: u64) -> PathBuf {
        let stage = store.stage(PolicyVersion(version)).unwrap();
        fs::write(stage.path().join("adapter.gguf"), format!("weights of {version}")).unwrap();
        fs::write(stage.path().join("critic.gguf"), "critic").unwrap();
        stage.commit(about()).unwrap()
    }

    pub(super) fn versions(numbers: &[u64]) -> Vec<PolicyVersion> {
        numbers.iter().copied().map(PolicyVersion).collect()
    }

    #[test]
    fn a_committed_version_verifies_and_tells_all_about_itself() {
        let (dir, store) = store();
        let path = publish(&store, 12);
        assert_eq!(path, dir.path().join("versions/000012"));
        let manifest = store.verify(PolicyVersion(12)).unwrap();
        assert_eq!((manifest.version, &manifest.about), (PolicyVersion(12), &about()));
        assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["adapter.gguf", "critic.gguf"]);
        assert_eq!(manifest.files["critic.gguf"].size, 6);
        assert_eq!(manifest.apa_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(store.list().unwrap(), versions(&[12]));
    }

    #[test]
    fn a_measurement_that_is_not_a_number_does_not_spoil_the_manifest() {
        let (_dir, store) = store();
        let stage = store.stage(PolicyVersion(1)).unwrap();
        fs::write(stage.path().join("adapter.gguf"), "x").unwrap();
        let mut about = about();
        about.metrics.explained_variance = f64::NAN;
        about.metrics.kl_per_response = Nats(f64::NAN);
        stage.commit(about).unwrap();
        let metrics = store.verify(PolicyVersion(1)).unwrap().about.metrics;
        assert!(metrics.explained_variance.is_nan() && metrics.kl_per_response.0.is_nan());
        assert_eq!(metrics.mean_reward, 0.25);
    }

    #[test]
    fn damaged_missing_and_cut_files_are_named() {
        let (_dir, store) = store();
        let path = publish(&store, 1);
        fs::write(path.join("adapter.gguf"), "weights of 2").unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert!(error.message().contains("version 1: adapter.gguf is damaged: sha256"), "{error}");
        fs::write(path.join("adapter.gguf"), "weights").unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert_eq!(error.message(), "version 1: adapter.gguf has 7 bytes, expected 12");
        fs::remove_file(path.join("adapter.gguf")).unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert!(error.message().contains("adapter.gguf"), "{error}");
        fs::write(path.join("manifest.json"), "{").unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert!(error.message().contains("version 1: manifest.json"), "{error}");
        fs::remove_file(path.join("manifest.json")).unwrap();
        assert!(store.verify(PolicyVersion(1)).unwrap_err().message().contains("manifest.json"));
        for unknown in [0, 7] {
            assert_eq!(store.verify(PolicyVersion(unknown)).unwrap_err().code(), crate::Code::Arg);
        }
    }

    #[test]
    fn a_manifest_cannot_point_outside_its_folder_or_at_another_version() {
        let (dir, store) = store();
        let path = publish(&store, 1);
        fs::write(dir.path().join("versions/secret"), "critic").unwrap();
        let text = fs::read_to_string(path.join("manifest.json")).unwrap();
        fs::write(path.join("manifest.json"), text.replace("critic.gguf", "../secret")).unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert!(error.message().contains("expected a plain file name"), "{error}");
        fs::write(path.join("manifest.json"), text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        let error = store.verify(PolicyVersion(1)).unwrap_err();
        assert!(error.message().contains("is of version 2"), "{error}");
        fs::write(path.join("manifest.json"), text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        assert_eq!(store.verify(PolicyVersion(1)).unwrap_err().code(), crate::Code::Unsupported);
    }

    #[test]
    fn a_committed_version_is_never_written_again() {
        let (_dir, store) = store();
        let stage = store.stage(PolicyVersion(3)).unwrap();
        fs::write(stage.path().join("adapter.gguf"), "late").unwrap();
        let path = stage.target.clone();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("adapter.gguf"), "first").unwrap();
        assert!(stage.commit(about()).unwrap_err().message().contains("on disk already"));
        assert!(store.stage(PolicyVersion(3)).unwrap_err().message().contains("on disk already"));
        assert_eq!(fs::read_to_string(path.join("adapter.gguf")).unwrap(), "first");
        assert!(store.stage(PolicyVersion(0)).is_err());
    }

    #[test]
    fn a_crash_between_stage_and_commit_leaves_no_number_taken_after_recovery() {
        let (dir, store) = store();
        publish(&store, 1);
        let stage = store.stage(PolicyVersion(2)).unwrap();
        fs::write(stage.path().join("adapter.gguf"), "half").unwrap();
        std::mem::forget(stage); // The process ended here.
        publish(&store, 3); // And here, before the ledger knew of it.
        fs::create_dir(dir.path().join("versions/.removing-000000")).unwrap();
        fs::create_dir(dir.path().join("versions/notes")).unwrap();

        let store = VersionStore::open(dir.path()).unwrap();
        let mut removed = store.remove_leftovers().unwrap();
        removed.sort();
        assert_eq!(removed, [".removing-000000", ".staging-000002"]);
        let aside = store.set_aside(&versions(&[0, 1])).unwrap();
        assert_eq!(aside.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["000003"]);
        let mut left: Vec<_> =
            fs::read_dir(dir.path().join("versions")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["000001", "aside", "notes"]);
        store.verify(PolicyVersion(1)).unwrap();
        publish(&store, 2);
    }

    #[test]
    fn a_stage_that_is_dropped_or_refused_leaves_nothing() {
        let (dir, store) = store();
        drop(store.stage(PolicyVersion(1)).unwrap());
        assert!(store.stage(PolicyVersion(1)).unwrap().commit(about()).unwrap_err().message().contains("no files"));
        let stage = store.stage(PolicyVersion(1)).unwrap();
        fs::create_dir(stage.path().join("nested")).unwrap();
        assert!(stage.commit(about()).unwrap_err().message().contains("expected plain files only"));
        assert_eq!(fs::read_dir(dir.path().join("versions")).unwrap().count(), 0);
    }

    #[test]
    fn pruning_keeps_the_newest_and_the_protected() {
        let (_dir, store) = store();
        for version in 1..=6 {
            publish(&store, version);
        }
        assert_eq!(store.prune(0, &[]).unwrap(), versions(&[]));
        assert_eq!(store.prune(2, &versions(&[0, 2])).unwrap(), versions(&[1, 3, 4]));
        assert_eq!(store.list().unwrap(), versions(&[2, 5, 6]));
        assert_eq!(store.prune(9, &[]).unwrap(), versions(&[]));
    }

    #[test]
    fn of_older_versions_what_only_training_needs_is_let_go_and_they_stay_whole() {
        let (_dir, store) = store();
        for version in 1..=5 {
            publish(&store, version);
        }
        assert_eq!(store.slim(0, &["critic.gguf"], &[]).unwrap(), versions(&[]));
        assert_eq!(store.slim(2, &["critic.gguf", "none"], &versions(&[2])).unwrap(), versions(&[1, 3]));
        assert_eq!(store.slim(2, &["critic.gguf", "none"], &versions(&[2])).unwrap(), versions(&[]));
        for version in 1..=5 {
            let manifest = store.verify(PolicyVersion(version)).unwrap();
            let critic = store.path(PolicyVersion(version)).join("critic.gguf").exists();
            assert_eq!(critic, ![1, 3].contains(&version));
            assert_eq!(manifest.files.contains_key("critic.gguf"), critic);
            assert_eq!(manifest.about, about());
        }
        // Cut off between the manifest and the files.
        fs::write(store.path(PolicyVersion(1)).join("critic.gguf"), "critic").unwrap();
        store.verify(PolicyVersion(1)).unwrap();
        assert_eq!(store.slim(2, &["critic.gguf"], &[]).unwrap(), versions(&[1, 2]));
        assert!(!store.path(PolicyVersion(1)).join("critic.gguf").exists());
    }

    #[test]
    fn folders_beyond_six_digits_are_still_versions() {
        assert_eq!(committed("1234567"), Some(PolicyVersion(1_234_567)));
        assert_eq!(committed("000012"), Some(PolicyVersion(12)));
        for other in ["12", "000000", "+00012", "", "notes", ".staging-000001"] {
            assert_eq!(committed(other), None);
        }
    }
}
