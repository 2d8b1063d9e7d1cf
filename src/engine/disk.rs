//! Measures the data folder's use of its disk, and whether another version fits. Never writes or removes anything.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::system::disk_room;
use crate::trainer::OPTIMIZER_FILES;

/// Publishing leaves 1/`LEFT` of the disk free, so that answers can still be recorded; at most [`MOST_LEFT`].
const LEFT: u64 = 20;
const MOST_LEFT: u64 = 1 << 30;
/// How deep folders are counted; ours are never deeper.
const DEPTH: usize = 4;

/// Disk use of the data folder, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct DiskUse {
    /// The record of answers and feedback, with its log.
    pub ledger: u64,
    /// The versions.
    pub versions: u64,
    /// The part of them that was set aside.
    pub aside: u64,
    /// Of the versions, critics and moments, which only training goes on from.
    #[serde(default)]
    pub states: u64,
    /// Reward models.
    pub reward: u64,
    /// Everything else: served forms, merged models.
    pub other: u64,
    /// Free space of the disk; `None` where the system does not tell.
    pub free: Option<u64>,
}

/// Measures every file of a data folder.
pub(super) fn measure(data: &Path) -> DiskUse {
    let mut found = DiskUse { free: disk_room(data).map(|room| room.free), ..DiskUse::default() };
    for entry in fs::read_dir(data).into_iter().flatten().flatten() {
        let bytes = size(&entry.path(), DEPTH);
        match entry.file_name().to_string_lossy() {
            name if name.starts_with("ledger.sqlite3") => found.ledger += bytes,
            name if name == "versions" => found.versions += bytes,
            name if name == "reward" => found.reward += bytes,
            _ => found.other += bytes,
        }
    }
    found.aside = size(&data.join("versions/aside"), DEPTH);
    let versions = fs::read_dir(data.join("versions")).into_iter().flatten().flatten();
    let states = |folder: fs::DirEntry| OPTIMIZER_FILES.map(|name| size(&folder.path().join(name), 0));
    found.states = versions.flat_map(states).sum();
    found
}

fn size(path: &Path, depth: usize) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten().take_while(|_| depth > 0);
    entries.map(|entry| size(&entry.path(), depth - 1)).sum()
}

/// Whether a version of `bytes` fits on the disk with room to spare.
///
/// # Errors
/// `Io` saying how much is free and how much it takes.
pub(super) fn check_room(data: &Path, bytes: u64) -> Result<()> {
    let Some(room) = disk_room(data) else { return Ok(()) };
    let spare = (room.total / LEFT).min(MOST_LEFT);
    if room.free >= bytes.saturating_add(spare) {
        return Ok(());
    }
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    Err(Error::io(format!(
        "the disk is full for learning: {:.1} MiB are free, another version takes {:.1}, and {:.1} are kept for the \
         record",
        mib(room.free),
        mib(bytes),
        mib(spare)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_disk_is_told_apart_and_a_version_must_fit_with_room_to_spare() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; bytes]).unwrap();
        };
        write("ledger.sqlite3", 10);
        write("ledger.sqlite3-wal", 5);
        write("versions/000001/adapter.gguf", 100);
        write("versions/000001/critic.gguf", 30);
        write("versions/aside/000002/adapter.gguf", 40);
        write("reward/000001.gguf", 7);
        write("whole/1.gguf", 3);
        let found = measure(dir.path());
        let DiskUse { ledger, versions, aside, states, reward, other, free } = found;
        assert_eq!((ledger, versions, aside, states, reward, other), (15, 170, 40, 30, 7, 3));
        check_room(dir.path(), 1).unwrap();
        if let Some(free) = free {
            let error = check_room(dir.path(), free).unwrap_err();
            assert!(error.message().contains("the disk is full for learning"), "{error}");
        }
    }
}
