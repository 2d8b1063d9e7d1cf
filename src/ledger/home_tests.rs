//! Where the tests of the ledger put one: each test of a suite runs once for each engine. That on Postgres is left out
//! where Debian's package isn't installed.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;

use super::db::Db;
#[cfg(feature = "postgres")]
use super::server_tests::shared;
use super::sqlite::{FILE, Sqlite};
use super::*;

/// A place for one ledger, which is gone with it.
pub(super) struct Home {
    folder: TempDir,
    url: Option<String>,
}

impl Home {
    pub(super) fn sqlite() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), url: None }
    }

    /// A database of its own; nothing, and a line that says so, where there is no Postgres.
    #[cfg(feature = "postgres")]
    pub(super) fn postgres() -> Option<Self> {
        let url = shared()?.database();
        Some(Self { folder: tempfile::tempdir().unwrap(), url: Some(url) })
    }

    /// A place in a folder.
    pub(super) fn within(folder: &Path) -> Self {
        Self { folder: tempfile::tempdir_in(folder).unwrap(), url: None }
    }

    /// Another server's place of the same ledger.
    #[cfg(feature = "postgres")]
    pub(super) fn beside(url: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), url: Some(url.to_owned()) }
    }

    /// Another place of the same engine.
    pub(super) fn another(&self) -> Self {
        #[cfg(feature = "postgres")]
        if self.url.is_some() {
            return Self::postgres().unwrap();
        }
        Self::sqlite()
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place::new(self.path(), self.url())
    }

    pub(super) fn open(&self) -> Ledger {
        self.open_with(Rules::default())
    }

    pub(super) fn open_with(&self, rules: Rules) -> Ledger {
        Ledger::open_with(self.place(), rules).unwrap()
    }

    /// Ends a ledger, and opens it again.
    pub(super) fn reopen(&self, ledger: Ledger) -> Ledger {
        drop(ledger);
        self.open()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.path().join(FILE)
    }

    /// A connection of another program's.
    pub(super) fn db(&self) -> Db {
        #[cfg(feature = "postgres")]
        if let Some(url) = &self.url {
            return postgres::connection(url);
        }
        Db::new(Sqlite(Connection::open(self.file()).unwrap()))
    }

    /// That an engine whose files can be checked finds them whole.
    pub(super) fn check(&self, ledger: &Ledger) {
        if self.url.is_none() {
            let check = |db: &Db| db.one("PRAGMA integrity_check", (), |row| row.get::<String>(0));
            assert_eq!(ledger.read(check).unwrap(), "ok");
        }
    }

    /// Whether the engine itself overwrites what is deleted.
    pub(super) fn overwrites(&self) -> bool {
        self.url.is_none()
    }

    /// Whether any file of the folder holds these bytes.
    pub(super) fn on_disk(&self, words: &[u8]) -> bool {
        std::fs::read_dir(self.path()).unwrap().any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes.windows(words.len()).any(|window| window == words)
        })
    }
}

/// The tests of a file, for each engine.
macro_rules! suite {
    ($($name:ident)*) => {
        mod on_sqlite {
            use $crate::ledger::home_tests::Home;

            $(#[test]
            fn $name() {
                super::$name(&Home::sqlite());
            })*
        }

        #[cfg(feature = "postgres")]
        mod on_postgres {
            use $crate::ledger::home_tests::Home;

            $(#[test]
            fn $name() {
                Home::postgres().inspect(super::$name);
            })*
        }
    };
}
pub(super) use suite;
