//! Keeps a command from overwriting its own inputs, whatever names they go by. Never opens or writes a file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How deep input folders are searched; inputs lie no deeper.
const DEPTH: usize = 4;

/// Refuses an output that is one of the inputs or lies inside one, through symbolic and hard links too. A path that
/// does not exist yet is nobody's input.
///
/// # Errors
/// `Arg` naming both paths.
pub fn check_output(out: &Path, inputs: &[&Path]) -> Result<()> {
    let Some(written) = Id::of(out) else { return Ok(()) };
    for input in inputs {
        if holds(input, &written, DEPTH) || other_parts(input).any(|part| holds(&part, &written, 0)) {
            return Err(Error::arg(format!(
                "{} would be written over {}: it is the file that is read, expected another place",
                out.display(),
                input.display()
            )));
        }
    }
    Ok(())
}

/// The same for a folder that `names` are written into.
///
/// # Errors
/// As [`check_output`].
pub fn check_output_folder(out: &Path, names: &[&str], inputs: &[&Path]) -> Result<()> {
    names.iter().try_for_each(|name| check_output(&out.join(name), inputs))
}

/// Refuses an output folder that holds an input, whatever files will be written there.
///
/// # Errors
/// `Arg` naming both paths.
pub fn check_written_folder(folder: &Path, input: &Path) -> Result<()> {
    match Id::of(input).is_some_and(|id| holds(folder, &id, DEPTH)) {
        false => Ok(()),
        true => Err(Error::arg(format!(
            "{} is read and lies in {}, which is written; expected another place for the results",
            input.display(),
            folder.display()
        ))),
    }
}

/// The other files of a split model, by the name of its first one.
fn other_parts(first: &Path) -> impl Iterator<Item = PathBuf> {
    let found = first.to_str().and_then(|name| {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let prefix = rest.strip_suffix("-00001")?.to_owned();
        Some((prefix, count.to_owned(), count.parse::<u16>().ok()?))
    });
    found.into_iter().flat_map(|(prefix, count, parts)| {
        (2..=parts).map(move |part| PathBuf::from(format!("{prefix}-{part:05}-of-{count}.gguf")))
    })
}

/// Identifies a file whatever its name.
#[derive(PartialEq)]
struct Id {
    #[cfg(unix)]
    place: (u64, u64),
    #[cfg(not(unix))]
    place: std::path::PathBuf,
}

impl Id {
    fn of(path: &Path) -> Option<Id> {
        #[cfg(unix)]
        return fs::metadata(path).ok().map(|found| {
            use std::os::unix::fs::MetadataExt;
            Id { place: (found.dev(), found.ino()) }
        });
        #[cfg(not(unix))]
        return fs::canonicalize(path).ok().map(|place| Id { place });
    }
}

fn holds(path: &Path, file: &Id, depth: usize) -> bool {
    if Id::of(path).is_some_and(|id| id == *file) {
        return true;
    }
    let Some(entries) = path.is_dir().then(|| fs::read_dir(path).ok()).flatten().filter(|_| depth > 0) else {
        return false;
    };
    entries.flatten().any(|entry| holds(&entry.path(), file, depth - 1))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_input_is_known_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("data/versions/000001")).unwrap();
        for name in ["base", "other", "data/versions/000001/adapter.gguf"] {
            fs::write(path(name), name).unwrap();
        }
        symlink(path("base"), path("link")).unwrap();
        symlink(path("link"), path("chain")).unwrap();
        fs::hard_link(path("base"), path("hard")).unwrap();
        symlink(path("data"), path("folder")).unwrap();
        for same in ["base", "./base", "data/../base", "link", "chain", "hard"] {
            let error = check_output(&path(same), &[&path("other"), &path("base")]).unwrap_err();
            assert!(error.message().contains("would be written over"), "{same}: {error}");
            check_output(&path("base"), &[&path(same)]).unwrap_err();
        }
        for inside in ["data/versions/000001/adapter.gguf", "folder/versions/000001/adapter.gguf"] {
            check_output(&path(inside), &[&path("data")]).unwrap_err();
        }
        check_output_folder(&path("folder/versions/000001"), &["adapter.gguf"], &[&path("data")]).unwrap_err();
        check_written_folder(&path("data/versions"), &path("data/versions/000001/adapter.gguf")).unwrap_err();
        check_written_folder(&path("data/versions"), &path("base")).unwrap();
        for part in 1..=3 {
            fs::write(path(&format!("model-0000{part}-of-00003.gguf")), "").unwrap();
        }
        let first = path("model-00001-of-00003.gguf");
        for part in 1..=3 {
            check_output(&path(&format!("model-0000{part}-of-00003.gguf")), &[&first]).unwrap_err();
        }
        check_output(&path("model-00002-of-00004.gguf"), &[&first]).unwrap();
        for free in ["new", "data/new", "other"] {
            check_output(&path(free), &[&path("base"), &path("data"), &path("missing")]).unwrap();
        }
    }
}
