//! `apad backup` and `apad restore`: a copy of a data folder, and a data folder of a copy. Work on folders alone.

use std::path::PathBuf;

use anyhow::Result;
use apa::config::Config;
use apa::engine::{Backup as Copied, backup, restore};
use clap::Args;

/// Copy a data folder while its daemon goes on: answers, ratings, versions and reward models, as they are at one moment
#[derive(Args)]
#[command(after_help = "\
Example:
  apad backup /backups/2027-01-31 --data apa-data

What a user has had deleted is in no later backup; earlier ones still hold it.")]
pub struct Backup {
    /// A new or an empty folder
    to: PathBuf,
    /// The data folder
    #[arg(long, value_name = "DIR", default_value_os_t = Config::default().data)]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make a data folder of a backup; every file is checked first
#[derive(Args)]
#[command(after_help = "\
Example:
  apad restore /backups/2027-01-31 --data apa-data")]
pub struct Restore {
    /// The backup
    from: PathBuf,
    /// The data folder: a new or an empty one
    #[arg(long, value_name = "DIR", default_value_os_t = Config::default().data)]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run_backup(options: Backup) -> Result<()> {
    tell(&backup(&options.data, &options.to)?, options.json)
}

pub async fn run_restore(options: Restore) -> Result<()> {
    tell(&restore(&options.from, &options.data)?, options.json)
}

fn tell(backup: &Copied, json: bool) -> Result<()> {
    if json {
        println!("{}", crate::json_text(backup)?);
    } else {
        println!("{} versions, {:.1} MiB", backup.versions.len(), backup.bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}
