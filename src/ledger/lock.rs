//! Locks a data folder for one process. Never waits, and never removes the lock file (that would let two in).

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::private_file;

/// Holds the lock until it is dropped or the process ends in any way: the operating system releases it.
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// `Busy` naming the folder and the holder's process id if it is taken.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("lock");
        let failed = |e: std::io::Error| Error::from(e).context(format!("locking {}", path.display()));
        let mut file = private_file().open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let pid =
                    file.take(20).read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse::<u32>().ok());
                let holder = pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
                return Err(Error::busy(format!("the data folder {} is in use by {holder}", dir.display())));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let noted =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        match noted {
            // The lock holds all the same; only its holder isn't named.
            Err(error) if error.kind() != ErrorKind::StorageFull => Err(failed(error)),
            _ => Ok(Self { _file: file }),
        }
    }
}
