//! `apad versions`: the published versions of a running daemon, and which one serves.

use anyhow::Result;
use apa::types::{PolicyVersion, VersionInfo};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::Daemon;

/// List the policy versions of a running daemon, or change the one that serves
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad versions
  apad versions activate 3
  apad versions rollback")]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// All versions, oldest first (what `apad versions` does alone)
    #[command(after_help = "Example:\n  apad versions list --json")]
    List,
    /// Serve this version from now on
    #[command(after_help = "\
Example:
  apad versions activate 3

Weights of its own serve a version faster than base and adapter, and take the memory of another model:
  apad export --model base.gguf --adapter DATA/versions/000003/adapter.gguf --merge --type q8_0 --out DATA/whole/3.gguf
  apad versions activate 3 --whole")]
    Activate {
        version: u64,
        /// By the merged weights in the daemon's folder, whole/VERSION.gguf, instead of base and adapter
        #[arg(long)]
        whole: bool,
    },
    /// Serve the parent of the active version from now on
    #[command(after_help = "Example:\n  apad versions rollback")]
    Rollback,
}

pub async fn run(options: Options) -> Result<()> {
    let client = options.daemon.client()?;
    let active = match options.action.unwrap_or(Action::List) {
        Action::List => {
            let versions = client.versions().await?;
            if options.json {
                println!("{}", serde_json::to_string_pretty(&versions)?);
            } else {
                print!("{}", table(&versions));
            }
            return Ok(());
        }
        Action::Activate { version, whole } => client.activate(PolicyVersion(version), whole).await?,
        Action::Rollback => client.rollback().await?,
    };
    if options.json {
        println!("{}", json!({"policy_version": active}));
    } else {
        println!("version {active} serves new requests");
    }
    Ok(())
}

fn table(versions: &[VersionInfo]) -> String {
    let mut text = String::from("  version  parent  samples   reward  tokens  KL/response (nats)\n");
    for v in versions {
        let mark = if v.active { '*' } else { ' ' };
        let parent = v.parent.map_or("-".to_owned(), |p| p.to_string());
        text += &format!("{mark} {:>7}  {parent:>6}", v.version.0);
        if v.metrics.samples > 0 {
            let m = &v.metrics;
            let (reward, length, kl) = (m.mean_reward, m.mean_length, m.kl_per_response.0);
            text += &format!("  {:>7}  {reward:>+7.3}  {length:>6.1}  {kl:>18.3}", m.samples);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_marks_the_active_version() {
        let info = |version, active| VersionInfo {
            version: PolicyVersion(version),
            parent: version.checked_sub(1).map(PolicyVersion),
            active,
            created: 0,
            metrics: Default::default(),
        };
        let text = table(&[info(0, false), info(1, true)]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("        0       -"), "{text}");
        assert!(lines[2].starts_with("*       1       0"), "{text}");
    }
}
