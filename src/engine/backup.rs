//! Copies a data folder that an engine may hold, and puts a copy in place. Never changes what it copies.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::files::private_file;
use crate::ledger::{Ledger, Place, check, snapshot};
use crate::publish::VersionStore;
use crate::system::{make_private_folder, unix_millis};
use crate::types::{PolicyVersion, UnixMillis};

/// Written last: a folder without it is no whole backup.
const MARK: &str = "backup.json";
/// The format of this build's backups.
const FORMAT: u32 = 1;
/// A version may lose its training state while it is copied, or go; then it is looked at again, this many times.
const TRIES: u32 = 3;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Format of the backup.
    pub format: u32,
    /// Version of this crate that wrote it.
    pub apa_version: String,
    /// When it was made.
    pub created: UnixMillis,
    /// The versions whose files it holds; others on record had none any more.
    pub versions: Vec<PolicyVersion>,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// Copies the ledger, as it is at one moment, the versions on its record, and the reward models of the data folder
/// `data` into `to`, while an engine goes on in it. Forms of the model that can be made again, and merged models, are
/// left out.
///
/// # Errors
/// `Arg` if `data` is no data folder, or `to` exists and is not empty or lies in `data`; `Io` for the disk, after which
/// `to` holds no whole backup; `Unsupported` for a ledger of another format.
pub fn backup(data: &Path, to: &Path) -> Result<Backup> {
    if let Some(database) = Place::from(data).elsewhere() {
        return Err(Error::arg(format!(
            "the ledger of {} is in {database}, which pg_dump copies; expected a folder with a ledger of its own",
            data.display()
        )));
    }
    if !Ledger::exists(data) {
        return Err(Error::arg(format!("{} is no data folder, expected one with a ledger", data.display())));
    }
    empty(to)?;
    if place(to)?.starts_with(fs::canonicalize(data)?) {
        return Err(Error::arg(format!("{} lies in the data folder, expected another place", to.display())));
    }
    made(to)?;
    let recorded = snapshot(data, to)?;
    let mut versions = Vec::new();
    for version in recorded.into_iter().filter(|version| *version != PolicyVersion::INITIAL) {
        if copy_version(data, to, version)? {
            versions.push(version);
        }
    }
    copy_files(&data.join("reward"), &to.join("reward"))?;
    let apa_version = env!("CARGO_PKG_VERSION").to_owned();
    let backup = Backup { format: FORMAT, apa_version, created: unix_millis(), versions, bytes: size(to) };
    let text = serde_json::to_string_pretty(&backup).map_err(|e| Error::io(e.to_string()))?;
    let mark = to.join(MARK);
    let write = || {
        let mut file = private_file().open(&mark)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        File::open(to)?.sync_all()
    };
    at(&mark, write())?;
    Ok(backup)
}

/// Makes the data folder `data` of a backup. Every file is checked before there is one.
///
/// # Errors
/// `Arg` if `from` holds no whole backup, or `data` exists and is not empty or lies in `from`; `Io` for the disk or a
/// damaged file; `Unsupported` for a backup of a newer format.
pub fn restore(from: &Path, data: &Path) -> Result<Backup> {
    let mark = from.join(MARK);
    let text = files::read(&mark, files::MOST).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::arg(format!("{} is no whole backup: it has no {MARK}", from.display())),
        _ => Error::from(e).context(mark.display()),
    })?;
    let backup: Backup =
        serde_json::from_slice(&text).map_err(|e| Error::io(format!("{} is damaged: {e}", mark.display())))?;
    if backup.format > FORMAT {
        let format = backup.format;
        return Err(Error::unsupported(format!("the backup has format {format}, this build knows up to {FORMAT}")));
    }
    empty(data)?;
    if place(data)?.starts_with(fs::canonicalize(from)?) {
        return Err(Error::arg(format!("{} lies in the backup, expected another place", data.display())));
    }
    // Beside its place, so that it appears whole or not at all.
    let data = &std::path::absolute(data)?;
    let name = data.file_name().ok_or_else(|| Error::arg(format!("{} has no name", data.display())))?;
    let staging = data.with_file_name(format!(".restoring-{}", name.to_string_lossy()));
    if staging.exists() {
        at(&staging, fs::remove_dir_all(&staging))?;
    }
    made(&staging)?;
    let put = || {
        copy(&from.join("ledger.sqlite3"), &staging.join("ledger.sqlite3"))?;
        check(&staging).map_err(|e| e.context(format!("the ledger of {}", from.display())))?;
        for version in &backup.versions {
            if !copy_version(from, &staging, *version)? {
                return Err(Error::io(format!("version {version} is missing in {}", from.display())));
            }
        }
        copy_files(&from.join("reward"), &staging.join("reward"))?;
        at(&staging, File::open(&staging).and_then(|folder| folder.sync_all()))?;
        at(data, fs::rename(&staging, data))
    };
    put().inspect_err(|_| {
        let _ = fs::remove_dir_all(&staging);
    })?;
    Ok(backup)
}

/// Copies a version's files and checks them against its manifest. `false` if it has none (any more).
fn copy_version(from: &Path, to: &Path, version: PolicyVersion) -> Result<bool> {
    let store = VersionStore::open(to)?;
    let (source, target) = (from.join("versions").join(store.name(version)), store.path(version));
    let mut outcome = Ok(false);
    for _ in 0..TRIES {
        if target.exists() {
            at(&target, fs::remove_dir_all(&target))?;
        }
        if !source.is_dir() {
            return Ok(false);
        }
        outcome = copy_files(&source, &target).and_then(|()| store.verify(version)).map(|_| true);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Copies the files of a folder, if there is one: those that are whole.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    made(to)?;
    for entry in at(from, fs::read_dir(from))? {
        let entry = at(from, entry)?;
        let name = entry.file_name();
        let unfinished = name.to_string_lossy().starts_with('.') || name.to_string_lossy().ends_with(".partial");
        if !unfinished && at(&entry.path(), entry.file_type())?.is_file() {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    at(to, File::open(to).and_then(|folder| folder.sync_all()))
}

/// Copies a file into one that only its owner reads, and waits for the disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = at(from, files::open(from))?;
    let mut write = || {
        let mut file = private_file().open(to)?;
        std::io::copy(&mut source, &mut file)?;
        file.sync_all()
    };
    at(to, write())
}

/// That nothing is there yet.
fn empty(folder: &Path) -> Result<()> {
    let taken = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::from(e).context(folder.display())),
    };
    match taken {
        true => Err(Error::arg(format!("{} is not empty, expected a new or an empty folder", folder.display()))),
        false => Ok(()),
    }
}

/// Where a path is, with the links of what exists of it followed.
fn place(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(above), path.strip_prefix(above)) {
            return Ok(real.join(rest));
        }
    }
    Ok(path)
}

fn made(folder: &Path) -> Result<()> {
    at(folder, make_private_folder(folder).map(drop))
}

fn size(folder: &Path) -> u64 {
    let sizes = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size(&entry.path()),
        _ => entry.metadata().map_or(0, |about| about.len()),
    });
    sizes.sum()
}

fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|e| Error::from(e).context(PathBuf::from(path).display()))
}
