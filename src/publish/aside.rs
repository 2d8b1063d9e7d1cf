//! Versions that are not on record: moved aside whole, and adopted again on demand. Never deletes a file of one.

use std::fs;
use std::path::PathBuf;

use super::{Manifest, Stage, VersionStore, at, committed, manifest, name_of, sync_dir};
use crate::error::Result;
use crate::types::PolicyVersion;

/// Name of the folder for them, in `versions/`.
const ASIDE: &str = "aside";

/// A version that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Its folder's name in `versions/aside/`: its number, with `-2` and so on added if that was taken.
    pub name: String,
    /// Path of its folder.
    pub path: PathBuf,
}

impl Aside {
    /// The number it had.
    pub fn version(&self) -> PolicyVersion {
        let number = self.name.split('-').next().unwrap_or_default();
        committed(number).unwrap_or_default()
    }

    /// Checks every file, and returns the manifest.
    ///
    /// # Errors
    /// `Io` naming the file that is missing or damaged, `Unsupported` for a manifest of a newer format.
    pub fn verify(&self) -> Result<Manifest> {
        manifest::verify(&self.path, self.version()).map_err(|e| e.context(format!("{} (set aside)", self.name)))
    }
}

impl VersionStore {
    /// Moves versions that are not `known` to `versions/aside/`: the record is older or was lost, or a crash came
    /// between writing their files and recording them. Returns the moved versions.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn set_aside(&self, known: &[PolicyVersion]) -> Result<Vec<Aside>> {
        let unknown: Vec<PolicyVersion> = self.list()?.into_iter().filter(|v| !known.contains(v)).collect();
        let folder = self.root.join(ASIDE);
        let mut moved = Vec::new();
        for version in unknown {
            at(&folder, fs::create_dir_all(&folder))?;
            let plain = name_of(version);
            let mut name = plain.clone();
            let mut copies = 1;
            while folder.join(&name).exists() {
                copies += 1;
                name = format!("{plain}-{copies}");
            }
            let (from, path) = (self.path(version), folder.join(&name));
            at(&from, fs::rename(&from, &path))?;
            moved.push(Aside { name, path });
        }
        if !moved.is_empty() {
            sync_dir(&folder)?;
            sync_dir(&self.root)?;
        }
        Ok(moved)
    }

    /// The versions set aside, by number and then by age.
    ///
    /// # Errors
    /// `Io` if the folder can't be read.
    pub fn aside(&self) -> Result<Vec<Aside>> {
        let folder = self.root.join(ASIDE);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in at(&folder, fs::read_dir(&folder))? {
            let entry = at(&folder, entry)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let aside = Aside { name, path: entry.path() };
            if aside.version() != PolicyVersion::INITIAL && entry.path().is_dir() {
                found.push(aside);
            }
        }
        found.sort_by_key(|a| (a.version(), a.name.len(), a.name.clone()));
        Ok(found)
    }

    /// Removes the folder of a version that was adopted.
    ///
    /// # Errors
    /// `Io` for the disk.
    pub fn drop_aside(&self, aside: &Aside) -> Result<()> {
        at(&aside.path, fs::remove_dir_all(&aside.path))
    }
}

impl Stage {
    /// Copies and checks the files of a version that was set aside. Returns its manifest.
    ///
    /// # Errors
    /// As [`Aside::verify`], and `Io` if they can't be copied.
    pub fn copy_from(&self, aside: &Aside) -> Result<Manifest> {
        let manifest = aside.verify()?;
        for name in manifest.files.keys() {
            let (from, to) = (aside.path.join(name), self.path().join(name));
            at(&from, fs::copy(&from, &to))?;
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::tests::{publish, store, versions};

    #[test]
    fn a_version_that_no_record_knows_is_moved_aside_and_never_over_another() {
        let (_dir, store) = store();
        for _ in 0..3 {
            publish(&store, 2);
            assert_eq!(store.set_aside(&versions(&[0, 1])).unwrap().len(), 1);
        }
        publish(&store, 1);
        assert!(store.set_aside(&versions(&[0, 1])).unwrap().is_empty());
        let aside = store.aside().unwrap();
        assert_eq!(aside.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["000002", "000002-2", "000002-3"]);
        for one in &aside {
            assert_eq!((one.version(), one.verify().unwrap().version), (PolicyVersion(2), PolicyVersion(2)));
        }
        assert_eq!(store.list().unwrap(), versions(&[1]));
    }

    #[test]
    fn what_was_set_aside_is_taken_in_under_another_number() {
        let (_dir, store) = store();
        publish(&store, 7);
        store.set_aside(&[]).unwrap();
        let aside = store.aside().unwrap().remove(0);
        let stage = store.stage(PolicyVersion(1)).unwrap();
        let manifest = stage.copy_from(&aside).unwrap();
        stage.commit(manifest.about).unwrap();
        assert_eq!(store.verify(PolicyVersion(1)).unwrap().files, manifest.files);
        store.drop_aside(&aside).unwrap();
        assert!(store.aside().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_version_is_not_taken_in_and_stays_aside() {
        let (_dir, store) = store();
        publish(&store, 1);
        store.set_aside(&[]).unwrap();
        let aside = store.aside().unwrap().remove(0);
        fs::write(aside.path.join("critic.gguf"), "other").unwrap();
        let error = store.stage(PolicyVersion(1)).unwrap().copy_from(&aside).unwrap_err();
        assert!(error.message().starts_with("000001 (set aside): critic.gguf has 5 bytes"), "{error}");
        assert_eq!((store.aside().unwrap().len(), store.list().unwrap().len()), (1, 0));
    }
}
