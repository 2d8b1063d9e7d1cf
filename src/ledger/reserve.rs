//! A file that only takes up room, to be given up when the disk has no other: a start and a deletion need some. Never
//! holds data.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::private_file;
use crate::system::disk_room;

/// Its size in bytes, at most; of a small disk 1/`SHARE`.
const MOST: u64 = 4 << 20;
const SHARE: u64 = 16;
/// Less is not worth a try.
const LEAST: u64 = 1 << 16;

/// The reserve of a data folder.
pub(super) struct Reserve {
    dir: PathBuf,
    /// Given up by this process, and not taken again.
    lent: AtomicBool,
}

impl Reserve {
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), lent: AtomicBool::new(false) }
    }

    /// Does work that needs some room on a full disk, too. Returns what it gave, and whether the room was given up for
    /// it.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        self.lend();
        let done = work();
        let lent = self.is_lent();
        self.take();
        (done, lent)
    }

    /// Gives the room up if the disk is full.
    pub(super) fn lend(&self) {
        let Some(room) = disk_room(&self.dir) else { return };
        if room.free >= size(room.total) {
            return;
        }
        // It may not be there, or may be lent already.
        if fs::remove_file(self.path()).is_ok() {
            self.lent.store(true, Ordering::Relaxed);
            tracing::warn!(free = room.free, "the disk is full: the data folder's reserve is used");
        }
    }

    /// Whether it is given up now.
    pub(super) fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Relaxed)
    }

    /// Takes the room (again): of a disk with little left half of that, or all of it after it was given up. A reserve
    /// that can't be had is no error.
    pub(super) fn take(&self) {
        let Some(room) = disk_room(&self.dir) else { return };
        let was_lent = self.lent.swap(false, Ordering::Relaxed);
        let most = if was_lent { room.free } else { room.free / 2 };
        if let Err(error) = grow(&self.path(), size(room.total), most) {
            tracing::debug!(%error, "the data folder has no reserve for a full disk");
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("reserve")
    }
}

fn size(total: u64) -> u64 {
    MOST.min(total / SHARE)
}

/// Lets the file be `wanted` bytes long, if `most` more are enough for that, or as long as they allow.
fn grow(path: &Path, wanted: u64, most: u64) -> io::Result<()> {
    let mut file = private_file().open(path)?;
    let length = file.metadata()?.len();
    let mut more = wanted.saturating_sub(length).min(most);
    while more >= LEAST {
        match allocate(&mut file, length, more) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                file.set_len(length)?;
                more /= 2;
            }
            done => return done.and_then(|()| file.sync_all()),
        }
    }
    Ok(())
}

/// Bytes on the disk, and not only in the file's length.
fn allocate(file: &mut File, from: u64, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), from, bytes) {
        Ok(()) => return Ok(()),
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::StorageFull => return Err(error.into()),
        // The file system doesn't know the call.
        Err(_) => {}
    }
    // Noise, which no file system compresses away.
    let mut noise = vec![0u8; LEAST as usize];
    rand::fill(&mut noise[..]);
    file.seek(SeekFrom::Start(from))?;
    let mut left = bytes as usize;
    while left > 0 {
        let part = left.min(noise.len());
        file.write_all(&noise[..part])?;
        left -= part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_takes_up_room_and_no_more_than_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let length = || fs::metadata(&path).unwrap().len();
        grow(&path, 4 * LEAST, 2 * LEAST).unwrap();
        assert_eq!(length(), 2 * LEAST);
        grow(&path, 4 * LEAST, 100 * LEAST).unwrap();
        assert_eq!(length(), 4 * LEAST);
        grow(&path, 4 * LEAST, 100 * LEAST).unwrap();
        grow(&path, 5 * LEAST, LEAST - 1).unwrap();
        assert_eq!(length(), 4 * LEAST);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 4 * LEAST, "it is a hole");
        }
        let reserve = Reserve::of(dir.path());
        reserve.lend();
        assert!(!reserve.is_lent() && path.exists(), "a disk with room leaves it alone");
        reserve.take();
        assert!(length() > 4 * LEAST || length() == size(disk_room(dir.path()).unwrap().total));
    }
}
