//! Asks the machine for the time, its cores, its free memory and disk space. Never changes anything on it.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::UnixMillis;

/// The current time.
pub(crate) fn unix_millis() -> UnixMillis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as UnixMillis)
}

/// Resolves a number of threads: 0 means one per core.
pub(crate) fn cores_or(threads: u32) -> u32 {
    static CORES: OnceLock<u32> = OnceLock::new();
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    if threads == 0 { *CORES.get_or_init(cores) } else { threads }
}

/// Space on the disk that holds a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskRoom {
    /// Bytes that this process may still write.
    pub(crate) free: u64,
    /// Size of the disk, in bytes.
    pub(crate) total: u64,
}

/// The space on a folder's disk; `None` where the system does not tell.
pub(crate) fn disk_room(folder: &std::path::Path) -> Option<DiskRoom> {
    #[cfg(unix)]
    return rustix::fs::statvfs(folder).ok().map(|disk| DiskRoom {
        free: disk.f_bavail.saturating_mul(disk.f_frsize),
        total: disk.f_blocks.saturating_mul(disk.f_frsize),
    });
    #[cfg(not(unix))]
    return {
        let _ = folder;
        None
    };
}

/// Bytes of memory available without swapping; `None` where the system does not tell.
pub(crate) fn free_memory() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}
