//! The manifest of a version's folder, and the check of its files. Never writes into the folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{at, sync_dir};
use crate::config::Algorithm;
use crate::error::{Error, Result};
use crate::files;
use crate::types::{PolicyVersion, StepMetrics, UnixMillis};

/// Name of the manifest in its folder.
pub(super) const MANIFEST: &str = "manifest.json";
/// The manifest format of this build.
const FORMAT: u32 = 1;
/// Size limit; a manifest is a few KB.
const MAX_BYTES: u64 = 1 << 20;

/// Facts about a version from the trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The version it was trained from.
    pub parent: Option<PolicyVersion>,
    /// SHA-256 of the base model's file, in hex; the adapter fits no other.
    pub base_sha256: String,
    /// When it was made.
    pub created: UnixMillis,
    /// The algorithm it was trained with.
    pub algorithm: Algorithm,
    /// Its λ.
    pub lambda: f64,
    /// Rank of the adapter.
    pub rank: u32,
    /// Scale numerator of the adapter: the update is multiplied by alpha / rank.
    pub alpha: f64,
    /// The measurements of its training batch.
    pub metrics: StepMetrics,
}

/// Size and checksum of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, in hex.
    pub sha256: String,
}

/// The `manifest.json` of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the manifest.
    pub format: u32,
    /// The version.
    pub version: PolicyVersion,
    /// Facts from the trainer.
    #[serde(flatten)]
    pub about: About,
    /// Version of this crate that wrote it.
    pub apa_version: String,
    /// Every other file of the folder, by name.
    pub files: BTreeMap<String, FileSum>,
}

impl Manifest {
    pub(super) fn new(version: PolicyVersion, about: About, files: BTreeMap<String, FileSum>) -> Self {
        Self { format: FORMAT, version, about, apa_version: env!("CARGO_PKG_VERSION").into(), files }
    }

    pub(super) fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| Error::io(format!("writing {MANIFEST}: {e}")))
    }

    /// Reads the manifest of a version's folder without checking the files.
    ///
    /// # Errors
    /// `Io` if it is missing or not a manifest, `Unsupported` if it is of a newer format.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::from_reader(at(Path::new(MANIFEST), files::open(&dir.join(MANIFEST)))?)
    }

    pub(super) fn from_reader(from: impl Read) -> Result<Self> {
        let mut text = String::new();
        at(Path::new(MANIFEST), from.take(MAX_BYTES).read_to_string(&mut text))?;
        let wrong = |e: serde_json::Error| Error::io(format!("{MANIFEST} is damaged: {e}"));
        // The format first, since a newer manifest may lack our fields.
        let Format { format } = serde_json::from_str(&text).map_err(wrong)?;
        if format > FORMAT {
            return Err(Error::unsupported(format!("{MANIFEST} has format {format}, this build knows up to {FORMAT}")));
        }
        serde_json::from_str(&text).map_err(wrong)
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

pub(super) fn verify(dir: &Path, version: PolicyVersion) -> Result<Manifest> {
    let manifest = read_as(dir, version)?;
    for (name, expected) in &manifest.files {
        check(dir, name, expected)?;
    }
    Ok(manifest)
}

/// Checks one file only.
pub(super) fn verify_file(dir: &Path, version: PolicyVersion, name: &str) -> Result<Manifest> {
    let manifest = read_as(dir, version)?;
    let expected =
        manifest.files.get(name).ok_or_else(|| Error::io(format!("{MANIFEST} doesn't list {name}, expected it")))?;
    check(dir, name, expected)?;
    Ok(manifest)
}

fn read_as(dir: &Path, version: PolicyVersion) -> Result<Manifest> {
    let manifest = Manifest::read(dir)?;
    if manifest.version != version {
        return Err(Error::io(format!("{MANIFEST} is of version {}", manifest.version)));
    }
    Ok(manifest)
}

fn check(dir: &Path, name: &str, expected: &FileSum) -> Result<()> {
    if Path::new(name).file_name() != Some(name.as_ref()) {
        return Err(Error::io(format!("{MANIFEST} lists {name:?}, expected a plain file name")));
    }
    let path = dir.join(name);
    // The cheap check first.
    let size = at(Path::new(name), fs::metadata(&path))?.len();
    if size != expected.size {
        return Err(Error::io(format!("{name} has {size} bytes, expected {}", expected.size)));
    }
    let found = sha256_file(&path)?;
    if found.sha256 != expected.sha256 {
        let (found, expected) = (found.sha256, &expected.sha256);
        return Err(Error::io(format!("{name} is damaged: sha256 {found}, expected {expected}")));
    }
    Ok(())
}

/// Lists the files `names` no longer: written beside and renamed, so that there is always one whole manifest.
pub(super) fn leave_out(dir: &Path, version: PolicyVersion, names: &[&str]) -> Result<()> {
    let mut manifest = read_as(dir, version)?;
    let before = manifest.files.len();
    manifest.files.retain(|name, _| !names.contains(&name.as_str()));
    if manifest.files.len() == before {
        return Ok(());
    }
    let (path, beside) = (dir.join(MANIFEST), dir.join(format!("{MANIFEST}.partial")));
    at(&beside, fs::write(&beside, manifest.to_json()?))?;
    at(&beside, File::open(&beside).and_then(|file| file.sync_all()))?;
    at(&path, fs::rename(&beside, &path))?;
    sync_dir(dir)
}

/// Sizes and checksums of all files of a folder.
pub(super) fn sum_files(dir: &Path) -> Result<BTreeMap<String, FileSum>> {
    let mut files = BTreeMap::new();
    for entry in at(dir, fs::read_dir(dir))? {
        let entry = at(dir, entry)?;
        let name = entry.file_name().into_string().ok().filter(|name| name != MANIFEST);
        // Links are refused too, since their targets are not part of the folder.
        let (Some(name), true) = (name, at(&entry.path(), entry.file_type())?.is_file()) else {
            let name = entry.file_name();
            return Err(Error::arg(format!("a staged version holds {}, expected plain files only", name.display())));
        };
        files.insert(name, sha256_file(&entry.path())?);
    }
    Ok(files)
}

/// Size and SHA-256 of a file.
///
/// # Errors
/// `Io` if it can't be read.
pub fn sha256_file(path: &Path) -> Result<FileSum> {
    let mut file = at(path, files::open(path))?;
    let (mut sum, mut size, mut buffer) = (Sha256::new(), 0, Vec::new());
    while at(path, (&mut file).take(1 << 20).read_to_end(&mut buffer))? > 0 {
        sum.update(&buffer);
        size += buffer.len() as u64;
        buffer.clear();
    }
    let sha256 = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileSum { size, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let sum = sha256_file(&path).unwrap();
        assert_eq!(sum.size, 3);
        assert_eq!(sum.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
