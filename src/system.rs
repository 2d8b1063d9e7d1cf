//! Asks the machine for the time, its cores, its free memory and disk space, and for private folders. Writes nothing
//! into them.

use std::fs::DirBuilder;
use std::io;
use std::path::{Path, PathBuf};
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

/// The name of this machine, for people to read.
pub(crate) fn host_name() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let named = named.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    let named = named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| "a server without a name".to_owned())
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
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io::Error::other(
            "it is there and is no folder, expected one: move it elsewhere, or name another place",
        )),
        made => made.map(|()| true),
    }
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

/// Bytes of memory that this process can still have without swapping: what the machine has, and what the limits of its
/// control groups leave; `None` where the system does not tell.
pub(crate) fn free_memory() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_room(Path::new("/sys/fs/cgroup"), &groups).map_or(machine, |room| room.min(machine)))
}

/// What the memory limits of control groups leave to a process with these lines in `/proc/self/cgroup`: those of its
/// group and of all above it, of version 2 or 1. Files that the system can drop count as free. `None` without a limit.
fn group_room(root: &Path, groups: &str) -> Option<u64> {
    let number = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let room = |folder: &Path, [limit, used, droppable]: [&str; 3]| {
        let (limit, used) = (number(folder.join(limit))?, number(folder.join(used))?);
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let files = stat.lines().find_map(|line| line.strip_prefix(droppable)?.trim().parse::<u64>().ok());
        Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
    };
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (kinds, path) = rest.split_once(':')?;
        let (root, names) = match kinds {
            "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
            kinds if kinds.split(',').any(|kind| kind == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "])
            }
            _ => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        path.ancestors().filter_map(|group| room(&root.join(group), names)).min()
    };
    groups.lines().filter_map(of).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_room_of_all_control_groups_counts_and_files_in_them_are_free() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(group_room(root.path(), "0::/a/b\n"), None, "no limit is known");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "70\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), None, "no limit is set");
        write("a/memory.max", "100\n");
        write("a/memory.current", "80\n");
        write("a/memory.stat", "anon 50\ninactive_file 25\nactive_file 5\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), Some(45));
        write("a/b/memory.max", "90\n");
        assert_eq!(group_room(root.path(), "0::/a/b\n"), Some(20));
        write("memory/c/memory.limit_in_bytes", "1000\n");
        write("memory/c/memory.usage_in_bytes", "990\n");
        write("memory/c/memory.stat", "total_inactive_file 5\n");
        let both = "3:cpu,memory:/c\n2:pids:/a\n0::/a/b\n";
        assert_eq!(group_room(root.path(), both), Some(15));
    }
}
