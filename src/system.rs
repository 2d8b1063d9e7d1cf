//! Asks the machine for the time, its cores, its free memory and disk space, and for private folders and files. Writes
//! nothing into them.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::path::Path;
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

/// Makes a folder that only its owner can access, and its missing parents. Returns whether it was made; an existing
/// folder is left as it is.
pub(crate) fn make_private_folder(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above)?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        made => made.map(|()| true),
    }
}

/// Options to open a file for reading and writing; if it is missing, it is made so that only its owner can access it.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
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
pub(crate) fn disk_room(folder: &Path) -> Option<DiskRoom> {
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
