//! A version as one file, for transport to another data folder: a tar archive, with the manifest first. Trusts nothing
//! in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::manifest::{MANIFEST, Manifest, sha256_file};
use super::{Stage, VersionStore, at, sync_dir};
use crate::error::{Error, Result};
use crate::overwrite::write_whole;
use crate::types::PolicyVersion;

impl VersionStore {
    /// Writes the files of a version into one file at `path`, whole or not at all, for its owner alone.
    ///
    /// # Errors
    /// As [`VersionStore::verify`], and `Io` if the file can't be written.
    pub fn pack(&self, version: PolicyVersion, path: &Path) -> Result<()> {
        let manifest = self.verify(version)?;
        write_whole(path, |out| {
            let mut archive = tar::Builder::new(out);
            for name in std::iter::once(MANIFEST).chain(manifest.files.keys().map(String::as_str)) {
                let from = self.path(version).join(name);
                at(&from, archive.append_path_with_name(&from, name))?;
            }
            at(path, archive.finish())
        })?;
        sync_dir(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }
}

impl Stage {
    /// Extracts a file of [`VersionStore::pack`] and checks it. Returns the manifest.
    ///
    /// # Errors
    /// `Io` for a file that is not such an archive, truncated or damaged; `Unsupported` for a newer format.
    pub fn unpack(&self, path: &Path) -> Result<Manifest> {
        self.unpack_checked(path).map_err(|e| e.context(format!("restoring {}", path.display())))
    }

    fn unpack_checked(&self, path: &Path) -> Result<Manifest> {
        let none = || Error::io("it is not a snapshot of a policy version");
        let mut archive = tar::Archive::new(io::BufReader::new(crate::files::open(path)?));
        let mut entries = archive.entries().map_err(|_| none())?;
        let mut first = entries.next().ok_or_else(none)?.map_err(|_| none())?;
        if first.path_bytes().as_ref() != MANIFEST.as_bytes() {
            return Err(none());
        }
        let manifest = Manifest::from_reader(&mut first)?;
        for (name, expected) in &manifest.files {
            if Path::new(name).file_name() != Some(name.as_ref()) || name == MANIFEST {
                return Err(Error::io(format!("{MANIFEST} lists {name:?}, expected a plain file name")));
            }
            let entry = entries.next().ok_or_else(|| Error::io(format!("it ends before {name}")))??;
            if entry.path_bytes().as_ref() != name.as_bytes() || !entry.header().entry_type().is_file() {
                return Err(Error::io(format!("it holds another file than {name}")));
            }
            let target = self.path().join(name);
            // The sizes in an archive are not trusted, since they could fill the disk.
            let mut file = at(&target, File::create_new(&target))?;
            let size = at(&target, io::copy(&mut entry.take(expected.size.saturating_add(1)), &mut file))?;
            if size != expected.size {
                return Err(Error::io(format!("{name} has {size} bytes or more, expected {}", expected.size)));
            }
            let found = sha256_file(&target)?.sha256;
            if found != expected.sha256 {
                return Err(Error::io(format!("{name} is damaged: sha256 {found}, expected {}", expected.sha256)));
            }
        }
        Ok(manifest)
    }
}
