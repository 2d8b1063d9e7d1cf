//! Any file of the Hugging Face hub, by `hf:OWNER/REPO:FILE`, in the cache. Trusts what the hub says of its size and
//! digest, since nobody else knows them; a known model has its own.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::hub::{self, About};
use super::progress::Progress;
use super::{cache, part_of, sha256};
use crate::WrongUse;

/// How every GGUF begins.
const MAGIC: &[u8; 4] = b"GGUF";
/// The branch whose newest commit is fetched.
const REVISION: &str = "main";

/// A file of a repository.
#[derive(Debug, PartialEq)]
pub struct HubFile {
    repo: String,
    file: String,
}

impl HubFile {
    /// Reads `hf:OWNER/REPO:FILE`; `None` for a name that doesn't begin like that.
    ///
    /// # Errors
    /// Wrong use, for one that begins like that and goes on otherwise, or is no GGUF.
    pub fn parse(name: &str) -> Result<Option<HubFile>> {
        let Some(rest) = name.strip_prefix("hf:") else { return Ok(None) };
        let part = |text: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !text.is_empty() && !text.starts_with('.') && text.chars().all(known)
        };
        let file = rest.split_once(':').filter(|(repo, file)| {
            repo.split('/').count() == 2 && repo.split('/').all(part) && file.split('/').all(part)
        });
        match file {
            Some((repo, file)) if file.ends_with(".gguf") => {
                Ok(Some(HubFile { repo: repo.to_owned(), file: file.to_owned() }))
            }
            _ => Err(WrongUse(format!("{name:?} names no model, expected hf:OWNER/REPO:FILE.gguf")).into()),
        }
    }

    /// The file in the cache, fetched if it isn't there, with its size and digest.
    ///
    /// # Errors
    /// If the hub can't be reached, has no such file, or sends something else.
    pub async fn pull(&self) -> Result<(PathBuf, About)> {
        let mut first = None;
        for file in parts(&self.file)? {
            let pulled = self.pull_one(&file).await?;
            first.get_or_insert(pulled);
        }
        first.context("a model has at least one file")
    }

    async fn pull_one(&self, file: &str) -> Result<(PathBuf, About)> {
        let path = cache::place(&Path::new("hf").join(&self.repo).join(file))?;
        let _alone = cache::lock(&path).await?;
        if path.exists() {
            let about = About { bytes: std::fs::metadata(&path)?.len(), sha256: None, revision: REVISION.into() };
            return Ok((path, about));
        }
        let about = hub::about(&self.repo, REVISION, file).await?;
        let part = part_of(&path, "hub");
        tracing::info!(repo = self.repo, file, bytes = about.bytes, "fetching");
        let progress = Progress::new(file, about.bytes);
        hub::fetch(&self.repo, &about.revision, file, &part, about.bytes, progress).await?;
        if let Err(wrong) = check(&part, &about).await {
            std::fs::remove_file(&part).with_context(|| format!("removing {}", part.display()))?;
            return Err(wrong.context(format!("hf:{}:{file}", self.repo)));
        }
        File::open(&part)?.sync_all()?;
        std::fs::rename(&part, &path)?;
        Ok((path, about))
    }
}

/// The files of a model: of a split one (`x-00001-of-00003.gguf`), all, the first one first.
fn parts(file: &str) -> Result<Vec<String>> {
    let split = || {
        let (head, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (head, number) = head.rsplit_once('-')?;
        let five = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        (five(number) && five(count)).then_some((head, number, count))
    };
    let Some((head, number, count)) = split() else { return Ok(vec![file.to_owned()]) };
    let total: u32 = count.parse().context("a number of files")?;
    if number != "00001" || total == 0 || total > 999 {
        return Err(WrongUse(format!("{file} is one file of several, expected the first one, of at most 999")).into());
    }
    Ok((1..=total).map(|number| format!("{head}-{number:05}-of-{count}.gguf")).collect())
}

/// Checks that it is what the hub said, and a GGUF.
async fn check(path: &Path, about: &About) -> Result<()> {
    let mut magic = [0; 4];
    File::open(path)?.read_exact(&mut magic)?;
    if &magic != MAGIC {
        bail!("what the hub sent is no GGUF; it is removed");
    }
    let Some(expected) = about.sha256.clone() else { return Ok(()) };
    let owned = path.to_path_buf();
    let found = tokio::task::spawn_blocking(move || sha256(&owned)).await??;
    if found != expected {
        bail!("what the hub sent has SHA-256 {found}, expected {expected}; it is removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_hub_is_named_by_repository_and_path() {
        let of = |name: &str| HubFile::parse(name).unwrap();
        let file = |repo: &str, file: &str| Some(HubFile { repo: repo.into(), file: file.into() });
        assert_eq!(of("hf:owner/repo-GGUF:a.Q4_K_M.gguf"), file("owner/repo-GGUF", "a.Q4_K_M.gguf"));
        assert_eq!(of("hf:owner/repo:sub/a.gguf"), file("owner/repo", "sub/a.gguf"));
        assert_eq!(of("smollm2-135m-instruct"), None);
        for wrong in ["hf:", "hf:owner/repo", "hf:repo:a.gguf", "hf:o/r:../a.gguf", "hf:o/r:/a.gguf", "hf:o/r:a.bin"] {
            let error = HubFile::parse(wrong).unwrap_err();
            assert!(error.is::<WrongUse>() && error.to_string().contains("hf:OWNER/REPO:FILE"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_split_model_is_all_of_its_files() {
        assert_eq!(parts("a.gguf").unwrap(), ["a.gguf"]);
        assert_eq!(parts("a-00001-of-00002.gguf").unwrap(), ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]);
        assert!(parts("a-00002-of-00002.gguf").is_err());
    }
}
