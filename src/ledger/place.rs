//! Where a ledger is: in a file of a data folder, or in a database that several servers share. Never opens the one for
//! the other.

use std::fs;
use std::path::{Path, PathBuf};

use super::db::Db;
use super::sqlite;
use crate::config::Config;
use crate::error::{Error, Result};

/// Notes in a data folder that its ledger is in a database, and in which.
const ELSEWHERE: &str = "ledger.elsewhere";

/// A data folder, and the URL of the database that has its ledger, if one has.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    dir: &'a Path,
    url: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// The ledger of a data folder, in the database of a URL if that is given.
    pub fn new(dir: &'a Path, url: Option<&'a str>) -> Self {
        Self { dir, url: url.filter(|url| !url.is_empty()) }
    }

    /// The place that the settings name.
    pub fn of(config: &'a Config) -> Self {
        Self::new(&config.data, config.ledger.url.as_deref())
    }

    /// The data folder.
    pub fn dir(&self) -> &'a Path {
        self.dir
    }

    /// Where the ledger is, for people: without a password.
    ///
    /// # Errors
    /// `Arg` for a URL that can't be read, `Unsupported` if this build has no such database.
    pub fn shown(&self) -> Result<String> {
        match self.url {
            None => Ok(self.dir.join(sqlite::FILE).display().to_string()),
            Some(url) => database::shown(url),
        }
    }

    /// Where the ledger is, if a database answers that has it or may have it; nothing is made.
    ///
    /// # Errors
    /// As [`Place::shown`], and `Io` if it doesn't answer.
    pub fn answers(&self) -> Result<String> {
        match self.url {
            None => self.shown(),
            Some(url) => database::answers(url),
        }
    }

    /// Whether there is a ledger, as far as the folder tells.
    pub(super) fn has_ledger(&self) -> bool {
        self.url.is_some() || self.dir.join(sqlite::FILE).is_file()
    }

    /// The database that has the ledger of this folder, by the note in it.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        fs::read_to_string(self.dir.join(ELSEWHERE)).ok().map(|note| note.trim().to_owned())
    }

    /// That the folder is not one of a ledger that is elsewhere.
    fn check(&self) -> Result<()> {
        let dir = self.dir.display();
        match self.url {
            None => self.elsewhere().map_or(Ok(()), |database| {
                Err(Error::arg(format!("the ledger of {dir} is in {database}, expected ledger.url to name it")))
            }),
            Some(_) if self.dir.join(sqlite::FILE).exists() => Err(Error::arg(format!(
                "the data folder {dir} has a ledger of its own, expected one without, as ledger.url names another"
            ))),
            Some(url) => {
                let named = database::shown(url)?;
                match self.elsewhere().filter(|database| *database != named) {
                    None => Ok(()),
                    Some(database) => Err(Error::arg(format!(
                        "the ledger of {dir} is in {database}, expected ledger.url to name it, not {named}; if it has \
                         moved there, remove {dir}/{ELSEWHERE}"
                    ))),
                }
            }
        }
    }

    /// Opens it for writing and for reading; it is made if missing.
    pub(super) fn open(&self) -> Result<Opened> {
        self.check()?;
        let Some(url) = self.url else {
            let (writer, reader) = sqlite::open(self.dir)?;
            return Ok(Opened { writer, readers: vec![reader], database: None });
        };
        let (writer, readers, database) = database::open(url)?;
        let note: PathBuf = self.dir.join(ELSEWHERE);
        if !note.exists() {
            fs::write(&note, self.shown()? + "\n")?;
        }
        Ok(Opened { writer, readers, database: Some(database) })
    }

    /// Opens it for reading, if it is of this build's format.
    pub(super) fn open_reader(&self) -> Result<Db> {
        self.check()?;
        match self.url {
            None => sqlite::open_reader(self.dir),
            Some(url) => database::open_reader(url),
        }
    }
}

impl<'a> From<&'a Path> for Place<'a> {
    fn from(dir: &'a Path) -> Self {
        Self::new(dir, None)
    }
}

impl<'a> From<&'a PathBuf> for Place<'a> {
    fn from(dir: &'a PathBuf) -> Self {
        Self::new(dir, None)
    }
}

/// An open ledger's connections.
pub(super) struct Opened {
    pub(super) writer: Db,
    pub(super) readers: Vec<Db>,
    /// Where other servers' news come from.
    pub(super) database: Option<database::Database>,
}

#[cfg(feature = "postgres")]
pub(super) use super::postgres as database;

/// What a build without databases says of them.
#[cfg(not(feature = "postgres"))]
pub(super) mod database {
    use super::{Db, Error, Result};
    use crate::ledger::db::Heard;

    pub(in crate::ledger) enum Database {}

    pub(in crate::ledger) enum Listener {}

    impl Database {
        pub(in crate::ledger) fn listen(&self, _: impl Fn(Heard) + Send + 'static) -> Result<Listener> {
            match *self {}
        }
    }

    fn none<T>() -> Result<T> {
        Err(Error::unsupported("ledger.url: this build has no Postgres, expected one with the feature postgres"))
    }

    pub(super) fn shown(_: &str) -> Result<String> {
        none()
    }

    pub(super) fn answers(_: &str) -> Result<String> {
        none()
    }

    pub(super) fn open(_: &str) -> Result<(Db, Vec<Db>, Database)> {
        none()
    }

    pub(super) fn open_reader(_: &str) -> Result<Db> {
        none()
    }
}
