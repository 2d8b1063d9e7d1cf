//! What a command may write: checks a file's place before, and puts the file there whole. Knows no format but by its
//! first bytes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::private_file;

/// How deep input folders are searched; inputs lie no deeper.
const DEPTH: usize = 4;
/// A data folder is one that holds this.
const LEDGER: &str = "ledger.sqlite3";
/// Bytes of an existing file that tell its form; a key file is told by a line, so it may take a few.
const HEAD: u64 = 4096;

/// What a command writes, and so what an existing file must be for it to be replaced. An empty file is of any form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A model or an adapter.
    Gguf,
    /// A policy version as one file.
    Snapshot,
    /// Keys of the daemon.
    Keys,
    /// Lines of text. Where that is no regular file, a pipe or a device for instance, it is written through.
    Lines,
}

impl Form {
    fn is(self, head: &[u8]) -> bool {
        match self {
            Form::Gguf => head.starts_with(b"GGUF"),
            Form::Snapshot => head.starts_with(b"manifest.json\0"),
            Form::Keys => !head.contains(&0),
            Form::Lines => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Form::Gguf => "a GGUF file",
            Form::Snapshot => "a snapshot of a policy version",
            Form::Keys => "a key file",
            Form::Lines => "text",
        }
    }

    /// Whether it has a place in a data folder: merged models in `whole/`, and a key file that is there already.
    fn is_at_home(self, out: &Path, data: &Path, head: &[u8]) -> bool {
        match self {
            Form::Gguf => out.parent() == Some(&data.join("whole")),
            Form::Keys => head.windows(7).any(|word| word == b"sha256:"),
            Form::Snapshot | Form::Lines => false,
        }
    }
}

/// Checks a file that a command is to write, and returns its path, with links followed. Call it before the work.
///
/// # Errors
/// `Arg` naming the path and what was expected: if it is one of the `inputs` or lies inside one, by whatever name; if
/// it exists and is no regular file, not of that form, or used by another process (a model that is served); if it lies
/// in a data folder.
pub fn check_target(out: &Path, form: Form, inputs: &[&Path]) -> Result<PathBuf> {
    let refused = |why: String| Err(Error::arg(format!("{} is not written: {why}", out.display())));
    if out == Path::new("-") {
        return refused("'-' is no file's name here, expected a path (./- is a file of that name)".into());
    }
    let found = fs::metadata(out);
    if form == Form::Lines && found.as_ref().is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        return Ok(out.to_owned());
    }
    let path = check_output(out, inputs)?;
    let mut head = Vec::new();
    if found.is_ok() {
        let file = File::open(&path).map_err(|e| Error::from(e).context(out.display()))?;
        // Whoever changes keys takes turns by such a lock.
        if form != Form::Keys && matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return refused("another process uses it, expected another place".into());
        }
        file.take(HEAD).read_to_end(&mut head).map_err(|e| Error::from(e).context(out.display()))?;
        if !head.is_empty() && !form.is(&head) {
            return refused(format!("it is there and is not {}, expected another place", form.name()));
        }
    }
    match data_folder(&path) {
        Some(data) if !form.is_at_home(&path, &data, &head) => {
            refused(format!("it lies in the data folder {}, expected another place", data.display()))
        }
        _ => Ok(path),
    }
}

/// The same for a folder that files of these `names` are written into, of any form.
///
/// # Errors
/// As [`check_target`].
pub fn check_target_folder(out: &Path, names: &[&str], inputs: &[&Path]) -> Result<()> {
    if let Some(data) = data_folder(out) {
        let data = data.display();
        return Err(Error::arg(format!(
            "{} is not written: it lies in the data folder {data}, expected another place",
            out.display()
        )));
    }
    names.iter().try_for_each(|name| check_output(&out.join(name), inputs).map(drop))
}

/// Refuses an output that is one of the inputs or lies inside one, through symbolic and hard links too, and one that is
/// there and no regular file. A path that does not exist yet is nobody's input. Returns the path with links followed.
///
/// # Errors
/// `Arg` naming the path, or both paths.
pub fn check_output(out: &Path, inputs: &[&Path]) -> Result<PathBuf> {
    let about = match (fs::metadata(out), fs::symlink_metadata(out)) {
        (Ok(about), _) => about,
        (Err(_), Ok(_)) => {
            let out = out.display();
            return Err(Error::arg(format!("{out} is not written: it is a link to nothing, expected another place")));
        }
        (Err(_), Err(_)) => return std::path::absolute(out).map_err(|e| Error::from(e).context(out.display())),
    };
    if !about.is_file() {
        let kind = if about.is_dir() { "a folder" } else { "no regular file" };
        return Err(Error::arg(format!("{} is not written: it is {kind}, expected a file's path", out.display())));
    }
    let path = fs::canonicalize(out).map_err(|e| Error::from(e).context(out.display()))?;
    let Some(written) = Id::of(out) else { return Ok(path) };
    for input in inputs {
        if holds(input, &written, DEPTH) || other_parts(input).any(|part| holds(&part, &written, 0)) {
            return Err(Error::arg(format!(
                "{} would be written over {}: it is the file that is read, expected another place",
                out.display(),
                input.display()
            )));
        }
    }
    Ok(path)
}

/// Writes a file beside its place and puts it there whole, for its owner alone, or leaves what was there; what is no
/// regular file is written through.
///
/// # Errors
/// What `write` says, and `Io` for the disk.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn io::Write) -> Result<()>) -> Result<()> {
    let at = |e: io::Error| Error::from(e).context(format!("writing {}", path.display()));
    let through = fs::metadata(path).is_ok_and(|about| !about.is_file());
    let mut name = path.as_os_str().to_owned();
    if !through {
        name.push(format!(".{}.partial", std::process::id()));
    }
    let beside = Path::new(&name);
    let whole = || {
        let file = if through { File::options().write(true).open(beside) } else { new_private_file(beside) };
        let mut out = io::BufWriter::new(file.map_err(at)?);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| at(e.into_error()))?;
        if through {
            return Ok(());
        }
        file.sync_all().map_err(at)?;
        fs::rename(beside, path).map_err(at)
    };
    let written = whole();
    if written.is_err() && !through {
        // The first error is the one to report.
        let _ = fs::remove_file(beside);
    }
    written
}

/// Makes a file that only its owner can access, in place of what an earlier try left there.
fn new_private_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => private_file().create_new(true).open(path),
    }
}

/// Marks a file as used by this process until what is returned is dropped: [`check_target`] of any process refuses it.
/// `None` where the file system knows no locks.
pub(crate) fn in_use(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    file.try_lock_shared().ok().map(|()| file)
}

/// The data folder that holds a path, itself or any folder above it.
fn data_folder(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    // What isn't there yet can't hold a ledger.
    let there = whole.ancestors().find_map(|above| fs::canonicalize(above).ok())?;
    there.ancestors().find(|above| above.join(LEDGER).is_file()).map(Path::to_owned)
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
        check_target_folder(&path("folder/versions/000001"), &["adapter.gguf"], &[&path("data")]).unwrap_err();
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

    #[test]
    fn only_regular_files_of_the_form_outside_data_folders_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["data/versions/000001", "data/whole", "free"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        let files = [
            ("data/ledger.sqlite3", "SQLite format 3\0"),
            ("data/lock", "123\n"),
            ("data/keys", "a client sha256:00\n"),
            ("data/versions/000001/adapter.gguf", "GGUF"),
            ("free/model.gguf", "GGUF"),
            ("free/one.tar", "manifest.json\0"),
            ("free/notes", "notes"),
            ("free/empty", ""),
        ];
        for (name, text) in files {
            fs::write(path(name), text).unwrap();
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        symlink("pipe", path("to-pipe")).unwrap();
        symlink("nothing", path("to-nothing")).unwrap();
        symlink("data", path("to-data")).unwrap();
        symlink("free/model.gguf", path("to-model")).unwrap();
        let forms = [Form::Gguf, Form::Snapshot, Form::Keys, Form::Lines];
        let said = |form, name: &str| check_target(&path(name), form, &[]).map_err(|e| e.message().to_owned());
        for form in forms {
            let inside = ["data/ledger.sqlite3", "data/lock", "data/new", "data/versions/000001/adapter.gguf"];
            for name in inside.into_iter().chain(["to-data/new", "data/no/such/new", "to-nothing", "free"]) {
                let error = said(form, name).expect_err(name);
                assert!(error.contains("is not written"), "{form:?} {name}: {error}");
            }
            assert!(check_target(Path::new("-"), form, &[]).unwrap_err().message().contains("'-'"));
            assert_eq!(said(form, "free/empty"), Ok(path("free/empty")), "{form:?}");
            assert_eq!(said(form, "free/new"), Ok(path("free/new")), "{form:?}");
            for pipe in ["pipe", "to-pipe"] {
                assert_eq!(said(form, pipe).is_ok(), form == Form::Lines, "{form:?} {pipe}");
            }
            assert_eq!(said(form, "free/one.tar").is_ok(), matches!(form, Form::Snapshot | Form::Lines), "{form:?}");
            assert_eq!(said(form, "free/model.gguf").is_ok(), matches!(form, Form::Gguf | Form::Keys | Form::Lines));
            assert_eq!(said(form, "free/notes").is_ok(), matches!(form, Form::Keys | Form::Lines), "{form:?}");
        }
        assert_eq!(said(Form::Gguf, "to-model"), Ok(path("free/model.gguf")), "not in the link's place");
        assert_eq!(said(Form::Gguf, "data/whole/1.gguf"), Ok(path("data/whole/1.gguf")));
        assert_eq!(said(Form::Keys, "data/keys"), Ok(path("data/keys")));
        let served = in_use(&path("free/model.gguf")).unwrap();
        assert!(said(Form::Gguf, "free/model.gguf").unwrap_err().contains("another process uses it"));
        drop(served);
        said(Form::Gguf, "free/model.gguf").unwrap();
    }

    #[test]
    fn a_file_is_written_whole_or_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        let broken = write_whole(&path, |out| {
            out.write_all(b"half").map_err(Error::from)?;
            Err(Error::io("broken off"))
        });
        assert_eq!(broken.unwrap_err().message(), "broken off");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        write_whole(&path, |out| Ok(out.write_all(b"new")?)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
