//! Reads files of an adapter's archive, in memory. Never writes one.

use std::io::Read;

use flate2::read::GzDecoder;
use tar::Archive;

use crate::error::{Error, Result};

/// The files of these names, wherever they lie in a tar, or in a tar that gzip packed. What they hold together is at
/// most `most` bytes.
pub(super) fn unpack(archive: &[u8], names: [&str; 2], most: u64) -> Result<[Vec<u8>; 2]> {
    let packed = archive.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> = if packed { Box::new(GzDecoder::new(archive)) } else { Box::new(archive) };
    let read = read(Archive::new(plain.take(most)), names);
    let [first, second] = read.map_err(|e| Error::train(format!("the archive of the adapter is damaged: {e}")))?;
    let missing = |name: &str| Error::train(format!("the archive of the adapter has no {name} within {most} bytes"));
    Ok([first.ok_or_else(|| missing(names[0]))?, second.ok_or_else(|| missing(names[1]))?])
}

fn read(mut archive: Archive<impl Read>, names: [&str; 2]) -> std::io::Result<[Option<Vec<u8>>; 2]> {
    let mut found = [None, None];
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?;
        let Some(place) = names.iter().position(|name| path.file_name().is_some_and(|own| own == *name)) else {
            continue;
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != entry.size() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        found[place] = Some(bytes);
        if found.iter().all(Option::is_some) {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn zipped(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn both_files_come_out_whatever_else_is_in_it() {
        let tar = tar_of(&[("README.md", b"no"), ("./x/b", b"second"), ("a", b"first")]);
        for archive in [zipped(&tar), tar] {
            assert_eq!(unpack(&archive, ["a", "b"], 1 << 20).unwrap(), [b"first".to_vec(), b"second".to_vec()]);
        }
    }

    #[test]
    fn what_is_no_archive_lacks_a_file_or_is_too_large_is_refused() {
        let said = |archive: &[u8], most| unpack(archive, ["a", "b"], most).unwrap_err().to_string();
        assert!(said(b"<html>", 1 << 20).contains("damaged"));
        assert!(said(&[0x1f, 0x8b, 1], 1 << 20).contains("damaged"));
        assert!(said(&tar_of(&[("a", b"first")]), 1 << 20).contains("has no b"));
        // A gigabyte of zeros packs to a megabyte.
        let large = vec![0; 1 << 20];
        let archive = zipped(&tar_of(&[("a", &large), ("b", &large)]));
        assert!(archive.len() < 1 << 15);
        assert!(said(&archive, 1 << 16).contains("damaged"), "{}", said(&archive, 1 << 16));
    }
}
