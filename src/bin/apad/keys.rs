//! `apad keys`: who may ask the daemon, and as what. Changes the key file alone.

use std::path::PathBuf;

use anyhow::{Context, Result};
use apa::http::{Scope, add_key, read_keys, revoke_key};
use apa::shown::shown;
use clap::{Args, Subcommand};

use crate::settings::Overrides;

/// Add, list and revoke the keys that a daemon accepts; it reads a changed file at its next request
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad keys add chat-app --file keys
  apad keys add ann --user ann --file keys      (one person's: requests and ratings are always ann's)
  apad keys add boss --scope operator --file keys
  apad keys revoke chat-app --file keys
  apad serve --model base.gguf --listen 0.0.0.0:8372 --set http.keys=keys

A client may generate, and rate, see and forget what was made with its key; the users that it names are its own,
recorded as KEY/USER. An operator may do everything. The file keeps hashes: a key is shown once, when it is added.")]
pub struct Options {
    /// The key file (default: the setting http.keys)
    #[arg(long, value_name = "FILE", global = true)]
    file: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a key and print it
    #[command(after_help = "Example:\n  apad keys add chat-app --file keys")]
    Add {
        /// Name of the key: letters, digits, '.', '_' and '-'
        name: String,
        /// client or operator
        #[arg(long, default_value_t = Scope::Client)]
        scope: Scope,
        /// The person whose key it is: it speaks for that user alone
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Names and scopes of all keys
    #[command(after_help = "Example:\n  apad keys list --file keys --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key back
    #[command(after_help = "Example:\n  apad keys revoke chat-app --file keys")]
    Revoke {
        /// Name of the key
        name: String,
    },
}

pub async fn run(options: Options) -> Result<()> {
    let file = match options.file {
        Some(file) => file,
        None => options.overrides.build([])?.http.keys.context("there is no --file, and http.keys is not set")?,
    };
    match options.action {
        Action::Add { name, scope, user } => {
            println!("{}", add_key(&file, &name, scope, user.as_deref())?);
            eprintln!("This is the key; the file keeps only its hash.");
        }
        Action::List { json } => {
            let keys = read_keys(&file)?;
            if json {
                println!("{}", crate::json_text(&keys)?);
                return Ok(());
            }
            for key in keys {
                let user = key.user.map(|user| format!("  for {}", shown(&user))).unwrap_or_default();
                let plain = if key.plain { "  (plain text: replace it)" } else { "" };
                println!("{:<24} {}{user}{plain}", shown(&key.name), key.scope);
            }
        }
        Action::Revoke { name } => revoke_key(&file, &name)?,
    }
    Ok(())
}
