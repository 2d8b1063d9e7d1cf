//! Opens files for reading: regular ones alone, since a pipe lets its reader wait for ever, and texts up to a length,
//! since a device has no end. And says how files are made that one user may read. Never writes.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Longest text of our own files, in bytes.
pub(crate) const MOST: u64 = 64 << 20;

/// Opens a regular file, without waiting for anything.
pub(crate) fn open(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
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

/// The bytes of a regular file that is at most `most` bytes long.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    bounded(open(path)?, most)
}

/// The text of a file, a pipe too, that is at most `most` bytes long.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let bytes = bounded(File::open(path)?, most)?;
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn bounded(file: File, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(Error::other(format!("it is longer than {most} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_not_waited_for_and_what_has_no_end_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        std::fs::write(path("file"), "text").unwrap();
        let pipe = open(&path("pipe")).unwrap_err();
        assert_eq!(pipe.to_string(), "it is not a regular file");
        open(dir.path()).unwrap_err();
        assert_eq!(read(&path("file"), 4).unwrap(), b"text");
        assert!(read(&path("file"), 3).unwrap_err().to_string().contains("longer than 3 bytes"));
        assert_eq!(read_text(&path("file"), 4).unwrap(), "text");
        assert!(read_text(Path::new("/dev/zero"), 100).unwrap_err().to_string().contains("longer"));
    }
}
