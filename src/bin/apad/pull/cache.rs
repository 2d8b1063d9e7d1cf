//! The cache of fetched models: where it is, what it holds, how a file is kept to one process. Fetches nothing.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::table::MODELS;

/// How deep the cache is searched: `hf/owner/repo/folder/file`.
const DEPTH: usize = 6;

/// A model in the cache.
pub struct Cached {
    /// What fetches and serves it: a known name, or `hf:OWNER/REPO:FILE`.
    pub name: String,
    /// Its file, or the first one of a split model.
    pub path: PathBuf,
    /// Size of the file, in bytes.
    pub bytes: u64,
}

/// The folder of what was fetched, and of what the commands remember.
///
/// # Errors
/// If none of the variables that name one is set.
pub fn cache_folder() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("APAD_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("apad")))
        .or_else(|| std::env::home_dir().map(|d| d.join(".cache/apad")))
        .context("no cache folder: none of APAD_CACHE, XDG_CACHE_HOME and HOME is set")
}

/// The folder of the models.
pub fn models() -> Result<PathBuf> {
    Ok(cache_folder()?.join("models"))
}

/// Where a file of that name belongs; its folder is made.
pub fn place(name: &Path) -> Result<PathBuf> {
    let path = models()?.join(name);
    let folder = path.parent().context("a model has no name")?;
    std::fs::create_dir_all(folder).with_context(|| format!("can't make the cache folder {}", folder.display()))?;
    Ok(path)
}

/// Waits until no other process fetches to `path`: two would write to the same partial file. Held until it is dropped.
pub async fn lock(path: &Path) -> Result<File> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = File::create(PathBuf::from(beside))?;
    Ok(tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??)
}

/// The models that are there, whole; by name.
pub fn cached() -> Result<Vec<Cached>> {
    let folder = models()?;
    let mut found = Vec::new();
    search(&folder, &folder, DEPTH, &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn search(root: &Path, folder: &Path, depth: usize, found: &mut Vec<Cached>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
        if about.is_dir() && depth > 0 {
            search(root, &path, depth - 1, found);
        } else if about.is_file() && path.extension().is_some_and(|ending| ending == "gguf") {
            found.extend(name_of(root, &path).map(|name| Cached { name, path, bytes: about.len() }));
        }
    }
}

/// The name that fetches a file of the cache.
fn name_of(root: &Path, path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root).ok()?.to_str()?;
    if let Some(rest) = inside.strip_prefix("hf/") {
        let mut parts = rest.splitn(3, '/');
        return Some(format!("hf:{}/{}:{}", parts.next()?, parts.next()?, parts.next()?));
    }
    Some(MODELS.iter().find(|known| known.file == inside).map_or(inside, |known| known.name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_cache_has_the_name_that_fetches_it() {
        let of = |inside: &str| name_of(Path::new("/c"), &Path::new("/c").join(inside));
        assert_eq!(of("SmolLM2-135M-Instruct.Q4_1.gguf").as_deref(), Some("smollm2-135m-instruct"));
        assert_eq!(of("hf/owner/repo/sub/file.gguf").as_deref(), Some("hf:owner/repo:sub/file.gguf"));
        assert_eq!(of("hf/file.gguf"), None);
    }
}
