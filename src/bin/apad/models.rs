//! `apad models`: which models are known, which are fetched and how large they are; removes them. Fetches nothing.

use anyhow::{Context, Result};
use apa::shown::{shown, shown_json};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::WrongUse;
use crate::pull::{Cached, cached, known_models};

/// List the models that are known and those that are fetched, or remove one
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad models
  apad models rm smollm2-135m-instruct

`apad pull` fetches: known models by name, others by hf:OWNER/REPO:FILE.")]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// List them
    List,
    /// Remove the file of a model that was fetched
    Rm {
        /// Its name, as the list has it
        name: String,
    },
}

pub async fn run(options: Options) -> Result<()> {
    match options.action {
        None | Some(Action::List) => list(options.json),
        Some(Action::Rm { name }) => remove(&name, options.json),
    }
}

fn list(json: bool) -> Result<()> {
    let fetched = cached()?;
    let mut rows: Vec<(String, u64, Option<&Cached>)> =
        fetched.iter().map(|model| (model.name.clone(), model.bytes, Some(model))).collect();
    for (name, bytes) in known_models() {
        if !fetched.iter().any(|model| model.name == name) {
            rows.push((name.to_owned(), bytes, None));
        }
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, bytes, model) in rows {
        if json {
            let path = model.map(|model| &model.path);
            let line = json!({"name": name, "bytes": bytes, "fetched": path.is_some(), "path": path});
            println!("{}", shown_json(&line.to_string()));
        } else {
            let place = model.map_or_else(|| "not fetched".to_owned(), |model| model.path.display().to_string());
            println!("{}", shown(&format!("{name:40} {:>8} MB  {place}", bytes / 1_000_000)));
        }
    }
    Ok(())
}

fn remove(name: &str, json: bool) -> Result<()> {
    let fetched = cached()?;
    let Some(model) = fetched.iter().find(|model| model.name == name) else {
        let names = fetched.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let there = if names.is_empty() { "none is".to_owned() } else { format!("there are: {names}") };
        return Err(WrongUse(format!("{name:?} is not fetched; {there}")).into());
    };
    std::fs::remove_file(&model.path).with_context(|| format!("removing {}", model.path.display()))?;
    if json {
        println!("{}", json!({"removed": model.name, "path": model.path, "bytes": model.bytes}));
    } else {
        println!("removed {}, {} MB", model.path.display(), model.bytes / 1_000_000);
    }
    Ok(())
}
