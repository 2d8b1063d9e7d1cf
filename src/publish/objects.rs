//! An object store with versions in it, each one file under a name that says its SHA-256: file, S3, Google Cloud
//! Storage or Azure. Never changes what was written, and checks all that it reads.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path as Name;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, parse_url_opts};
use reqwest::Url;
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

use super::{at, name_of, sha256_file};
use crate::error::{Error, Result};
use crate::files::private_file;
use crate::types::PolicyVersion;

/// How names end.
const ENDING: &str = ".tar";
/// Bytes that are sent at once.
const PART: usize = 1 << 20;
/// Most objects of one version that are looked at.
const MOST: usize = 16;
/// Variables that hold credentials and addresses of stores.
const VARIABLES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// An open store. Calls wait for the network, with a few tries of theirs.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Where the versions are in it.
    folder: Name,
    /// Its URL, for messages.
    shown: String,
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
}

impl Objects {
    /// Nothing is asked of the store yet.
    ///
    /// # Errors
    /// `Arg` for a URL that is none, of another kind, or with a password in it.
    pub fn open(url: &str) -> Result<Self> {
        let wrong = |why: &dyn std::fmt::Display| {
            Error::arg(format!("publish.store: {why}; expected file:///PATH, s3://BUCKET/PATH, gs:// or az://"))
        };
        let parsed = Url::parse(url).map_err(|e| wrong(&e))?;
        if parsed.password().is_some() {
            return Err(wrong(&"credentials belong into the environment, not into the URL"));
        }
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| VARIABLES.iter().any(|of| name.starts_with(of)))
            .map(|(name, value)| (name.to_ascii_lowercase(), value));
        let (store, folder) = parse_url_opts(&parsed, variables).map_err(|e| wrong(&e))?;
        let runtime = Some(Builder::new_current_thread().enable_all().build()?);
        Ok(Self { store: store.into(), folder: folder.join("versions"), shown: url.to_owned(), runtime })
    }

    /// Writes a file as that version, unless it is there already, and returns its name.
    ///
    /// # Errors
    /// `Io` for the file or the store.
    pub fn put(&self, version: PolicyVersion, from: &Path) -> Result<String> {
        let sum = sha256_file(from)?;
        let called = format!("{}{ENDING}", sum.sha256);
        let name = self.of(version).join(called.as_str());
        let mut file = at(from, File::open(from))?;
        self.wait(async {
            if self.store.head(&name).await.is_ok_and(|there| there.size == sum.size) {
                return Ok(());
            }
            let mut to = BufWriter::new(self.store.clone(), name.clone());
            let mut part = vec![0; PART];
            loop {
                let count = at(from, file.read(&mut part))?;
                if count == 0 {
                    return Ok(to.shutdown().await?);
                }
                if let Err(error) = to.write_all(&part[..count]).await {
                    // Else the parts that arrived would be kept, and paid for.
                    to.abort().await?;
                    return Err(error.into());
                }
            }
        })?;
        Ok(called)
    }

    /// The names of the files of a version: more than one if servers made it at the same time.
    ///
    /// # Errors
    /// `Io` for the store.
    pub fn names(&self, version: PolicyVersion) -> Result<Vec<String>> {
        self.wait(async {
            let all = self.all_of(version).await?;
            Ok(all.iter().filter_map(|one| one.location.filename().map(str::to_owned)).collect())
        })
    }

    /// Writes a version's file of that name to `to`, which must not be there.
    ///
    /// # Errors
    /// `Io` if it is not what its name says, and for the store and the disk.
    pub fn get(&self, version: PolicyVersion, name: &str, to: &Path) -> Result<()> {
        self.wait(async {
            let expected = name.strip_suffix(ENDING).unwrap_or_default();
            let mut stream = self.store.get(&self.of(version).join(name)).await?.into_stream();
            let mut file = at(to, private_file().create_new(true).open(to))?;
            while let Some(part) = stream.try_next().await? {
                at(to, file.write_all(&part))?;
            }
            let found = sha256_file(to)?.sha256;
            if found != expected {
                return Err(Error::io(format!("version {version} is damaged: sha256 {found}, expected {expected}")));
            }
            Ok(())
        })
    }

    /// Removes all that the store has of a version.
    ///
    /// # Errors
    /// `Io` for the store.
    pub fn remove(&self, version: PolicyVersion) -> Result<()> {
        self.wait(async {
            for one in self.all_of(version).await? {
                self.store.delete(&one.location).await?;
            }
            Ok(())
        })
    }

    /// Removes the file of that name.
    ///
    /// # Errors
    /// `Io` for the store.
    pub fn remove_one(&self, version: PolicyVersion, name: &str) -> Result<()> {
        self.wait(async { Ok(self.store.delete(&self.of(version).join(name)).await?) })
    }

    /// An error of the store's, which has no such version.
    pub fn lacks(&self, version: PolicyVersion) -> Error {
        Error::arg(format!("the object store {} has no version {version}", self.shown))
    }

    fn of(&self, version: PolicyVersion) -> Name {
        self.folder.clone().join(name_of(version))
    }

    async fn all_of(&self, version: PolicyVersion) -> Result<Vec<ObjectMeta>> {
        Ok(self.store.list(Some(&self.of(version))).take(MOST).try_collect().await?)
    }

    /// Runs on a thread of its own, since the caller's may be one of another runtime.
    fn wait<T: Send>(&self, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let runtime = self.runtime.as_ref().ok_or_else(|| Error::closed("it is closed"))?;
        let done = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(work)).join());
        let done = done.unwrap_or_else(|_| Err(Error::panic("a call to it panicked")));
        done.map_err(|e| e.context(format!("the object store {}", self.shown)))
    }
}

impl Drop for Objects {
    /// A runtime may not be dropped where another one runs.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        Error::io(error.to_string())
    }
}
