//! `apad versions`: the published versions of a running daemon or of its data folder, and which one serves.

mod files;

use std::path::PathBuf;

use anyhow::{Result, bail};
use apa::engine::{Adopted, Archive, AsideVersion, PublishOutcome, VerdictRecord, VersionRecord};
use apa::ledger::Place;
use apa::shown::shown_lines;
use apa::types::{PolicyVersion, Ruling, VersionInfo};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use crate::WrongUse;
use crate::client::{Client, Daemon};
use crate::settings::ledger_url;
use files::{aside_table, files, state, states};

/// List the policy versions of a running daemon, or change the one that serves
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad versions
  apad versions show 3
  apad versions activate 3
  apad versions rollback
  apad versions activate 2 --data apa-data   (while no daemon holds the folder)
  apad versions verify                       (reads every file; exit code 1 if one is damaged)
  apad versions adopt                        (what a start set aside, because the record didn't know it)
  apad versions snapshot 3 version-3.tar
  apad versions train                        (now, on the ratings that wait)")]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    folder: Folder,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

/// Where the versions are if no daemon runs; for the subcommands that can do without one.
#[derive(Args)]
struct Folder {
    /// The data folder itself, while no daemon holds it, instead of a running daemon
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// All versions, oldest first (what `apad versions` does alone)
    #[command(after_help = "Example:\n  apad versions list --json")]
    List {
        #[command(flatten)]
        folder: Folder,
    },
    /// A version with the verdict over it: what was measured, and why it serves or doesn't
    #[command(after_help = "Example:\n  apad versions show 3 --json")]
    Show {
        version: u64,
        #[command(flatten)]
        folder: Folder,
    },
    /// Check the files of every version: which are whole, which were removed on purpose, and which are damaged
    #[command(after_help = "Example:\n  apad versions verify --data apa-data")]
    Verify {
        #[command(flatten)]
        folder: Folder,
    },
    /// Serve this version from now on
    #[command(after_help = "\
Example:
  apad versions activate 3

Weights of its own serve a version faster than base and adapter, and take the memory of another model:
  mkdir -p DATA/whole
  apad export --model base.gguf --adapter DATA/versions/000003/adapter.gguf --merge --type q8_0 --out DATA/whole/3.gguf
  apad versions activate 3 --whole")]
    Activate {
        version: u64,
        /// By the merged weights in the daemon's folder, whole/VERSION.gguf, instead of base and adapter
        #[arg(long)]
        whole: bool,
        #[command(flatten)]
        folder: Folder,
    },
    /// Serve the parent of the active version from now on
    #[command(after_help = "Example:\n  apad versions rollback")]
    Rollback {
        #[command(flatten)]
        folder: Folder,
    },
    /// Write the files of a version into one file, which another machine with the same base model can restore
    #[command(after_help = "Example:\n  apad versions snapshot 3 version-3.tar")]
    Snapshot {
        version: u64,
        /// The file to write
        file: PathBuf,
    },
    /// Make a new version of a snapshot's file, a child of the one that serves, and serve it
    #[command(after_help = "Example:\n  apad versions restore version-3.tar")]
    Restore {
        /// What `apad versions snapshot` wrote
        file: PathBuf,
    },
    /// Train on the ratings that wait, now and however few they are, and publish
    #[command(after_help = "Example:\n  apad versions train --json")]
    Train,
    /// Take in versions that were set aside because the record didn't know them; none is served by it
    #[command(after_help = "Example:\n  apad versions adopt 000003")]
    Adopt {
        /// A name of `apad versions list`'s last lines (default: all of them)
        name: Option<String>,
        #[command(flatten)]
        folder: Folder,
    },
}

impl Action {
    /// The folder named behind the subcommand.
    fn folder(&mut self) -> Option<PathBuf> {
        match self {
            Action::List { folder }
            | Action::Show { folder, .. }
            | Action::Verify { folder }
            | Action::Activate { folder, .. }
            | Action::Rollback { folder }
            | Action::Adopt { folder, .. } => folder.data.take(),
            Action::Snapshot { .. } | Action::Restore { .. } | Action::Train => None,
        }
    }
}

/// Where to read the versions: a daemon or its folder.
enum Versions {
    Daemon(Client),
    Folder(Box<Archive>),
}

pub async fn run(options: Options) -> Result<()> {
    let mut action = options.action.unwrap_or(Action::List { folder: Folder { data: None } });
    let data = action.folder().or(options.folder.data);
    let from = match &data {
        None => Versions::Daemon(options.daemon.client()?),
        Some(dir) => Versions::Folder(Box::new(Archive::open(Place::new(dir, ledger_url(dir)?.as_deref()))?)),
    };
    let active = match action {
        Action::List { .. } => {
            let (versions, aside) = (from.list().await?, from.set_aside().await?);
            return print(options.json, &versions, || table(&versions) + &aside_table(&aside));
        }
        Action::Show { version, .. } => {
            let record = from.show(PolicyVersion(version)).await?;
            return print(options.json, &record, || shown(&record) + &files(&record));
        }
        Action::Verify { .. } => {
            let mut records = Vec::new();
            for version in from.list().await?.iter().filter(|v| v.version != PolicyVersion::INITIAL) {
                records.push(from.show(version.version).await?);
            }
            print(options.json, &states(&records), || records.iter().map(|r| format!("{}\n", state(r))).collect())?;
            match records.iter().filter(|record| record.damage.is_some()).count() {
                0 => return Ok(()),
                damaged => bail!("{damaged} of {} versions are damaged", records.len()),
            }
        }
        Action::Adopt { name, .. } => {
            let adopted = from.adopt(name.as_deref()).await?;
            let line = |one: &Adopted| format!("{} is version {}\n", one.name, one.version);
            let none = || "nothing was set aside\n".to_owned();
            let text = || if adopted.is_empty() { none() } else { adopted.iter().map(line).collect() };
            let left = if name.is_none() { from.set_aside().await? } else { Vec::new() };
            return print(options.json, &adopted, || text() + &aside_table(&left));
        }
        Action::Snapshot { version, file } => {
            let bytes = from.daemon("snapshot")?.snapshot(PolicyVersion(version), &file).await?;
            let said = json!({"version": version, "file": file, "bytes": bytes});
            return print(options.json, &said, || {
                format!("version {version} is in {}, {:.1} MB\n", file.display(), bytes as f64 / 1e6)
            });
        }
        Action::Train => {
            let outcome = from.daemon("train")?.train().await?;
            return print(options.json, &outcome, || trained(&outcome));
        }
        Action::Restore { file } => {
            let client = from.daemon("restore")?;
            let version = client.restore(&file).await?;
            let said = client.version(version).await?.verdict.map(|verdict| verdict.record).unwrap_or_default();
            let said: VerdictRecord = serde_json::from_value(said).unwrap_or_default();
            return print(options.json, &json!({"policy_version": version, "reason": said.reason}), || {
                format!("version {version} serves new requests: {}\n", said.reason)
            });
        }
        Action::Activate { version, whole, .. } => from.activate(PolicyVersion(version), whole).await?,
        Action::Rollback { .. } => from.rollback().await?,
    };
    let when = if data.is_some() { "is what the next start serves" } else { "serves new requests" };
    print(options.json, &json!({"policy_version": active}), || format!("version {active} {when}\n"))
}

/// What became of a step, as text.
fn trained(outcome: &PublishOutcome) -> String {
    match outcome {
        PublishOutcome::Published { version, metrics } => {
            format!("version {version} serves new requests, trained on {} answers\n", metrics.samples)
        }
        PublishOutcome::Pending { version, reason, .. } => {
            format!("version {version} was trained and does not serve everyone yet: {reason}\n")
        }
        PublishOutcome::Skipped { reason, .. } => format!("no version was made: {reason}\n"),
    }
}

impl Versions {
    /// The running daemon, which alone can do some things.
    fn daemon(&self, what: &str) -> Result<&Client> {
        match self {
            Versions::Daemon(client) => Ok(client),
            Versions::Folder(_) => Err(WrongUse(format!("{what} needs a running daemon, expected no --data")).into()),
        }
    }

    async fn list(&self) -> Result<Vec<VersionInfo>> {
        match self {
            Versions::Daemon(client) => client.versions().await,
            Versions::Folder(archive) => Ok(archive.versions()?),
        }
    }

    async fn set_aside(&self) -> Result<Vec<AsideVersion>> {
        match self {
            Versions::Daemon(client) => client.set_aside().await,
            Versions::Folder(archive) => Ok(archive.set_aside()?),
        }
    }

    async fn show(&self, version: PolicyVersion) -> Result<VersionRecord> {
        match self {
            Versions::Daemon(client) => client.version(version).await,
            Versions::Folder(archive) => Ok(archive.version(version)?),
        }
    }

    async fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        match self {
            Versions::Daemon(client) => client.adopt(name).await,
            Versions::Folder(archive) => Ok(archive.adopt(name)?),
        }
    }

    async fn activate(&self, version: PolicyVersion, whole: bool) -> Result<PolicyVersion> {
        match self {
            Versions::Daemon(client) => client.activate(version, whole).await,
            Versions::Folder(_) if whole => {
                Err(WrongUse("--whole needs a running daemon: a start serves the adapter".into()).into())
            }
            Versions::Folder(archive) => Ok(archive.activate(version).map(|()| version)?),
        }
    }

    async fn rollback(&self) -> Result<PolicyVersion> {
        match self {
            Versions::Daemon(client) => client.rollback().await,
            Versions::Folder(archive) => Ok(archive.rollback()?),
        }
    }
}

fn print(as_json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    if as_json {
        println!("{}", crate::json_text(value)?);
    } else {
        print!("{}", shown_lines(&text()));
    }
    Ok(())
}

fn table(versions: &[VersionInfo]) -> String {
    let mut text = String::from("  version  parent  samples   reward  tokens  KL/response (nats)\n");
    for v in versions {
        let mark = match v.ruling {
            _ if v.active => '*',
            Some(Ruling::Proposed) => '?',
            _ => ' ',
        };
        let parent = v.parent.map_or("-".to_owned(), |p| p.to_string());
        let m = &v.metrics;
        let (reward, length, kl) = (m.mean_reward, m.mean_length, m.kl_per_response.0);
        let measured = match m.samples {
            0 => String::new(),
            samples => format!("{samples:>7}  {reward:>+7.3}  {length:>6.1}  {kl:>18.3}"),
        };
        // What is promoted is the rule.
        let said = v.ruling.filter(|ruling| *ruling != Ruling::Promoted).map(ruled).unwrap_or_default();
        let line = format!("{mark} {:>7}  {parent:>6}  {measured:<44}  {said}", v.version.0);
        text += &format!("{}\n", line.trim_end());
    }
    match versions.iter().rfind(|v| v.ruling == Some(Ruling::Proposed)) {
        Some(VersionInfo { version, .. }) => {
            let stays = versions.iter().find(|v| v.active).map(|v| v.version).unwrap_or_default();
            text + &format!(
                "? waits for a person (gate.mode): `apad versions activate {version}` serves it, \
                 `apad versions activate {stays}` refuses it\n"
            )
        }
        None => text,
    }
}

/// A ruling in words.
fn ruled(ruling: Ruling) -> String {
    serde_json::to_value(ruling).unwrap_or_default().as_str().unwrap_or_default().replace('_', " ")
}

/// A version as text.
fn shown(record: &VersionRecord) -> String {
    let lineage: Vec<String> = record.lineage.iter().map(|v| v.to_string()).collect();
    let mut text = format!("version {}{}\n", record.info.version, if record.info.active { ", active" } else { "" });
    if !lineage.is_empty() {
        text += &format!("goes back to {}\n", lineage.join(", "));
    }
    let Some(verdict) = &record.verdict else { return text + "no gate has judged it\n" };
    let said: VerdictRecord = serde_json::from_value(verdict.record.clone()).unwrap_or_default();
    text += &format!("{}: {}\n", ruled(verdict.ruling), said.reason);
    if let Some(examination) = &said.examination {
        let seconds = said.seconds.map_or(String::new(), |s| format!(" in {s:.1} s"));
        text += &format!("\nexamination on {} prompts{seconds}\n", examination.prompts);
        text += "  measure                parent  candidate  difference (95%)          limit\n";
        for c in &examination.compared {
            let d = &c.difference;
            let limit = c.limit.map_or("-".to_owned(), |limit| format!("{limit:.3}"));
            text += &format!(
                "{} {:<18}  {:>8.3}  {:>9.3}",
                if c.crossed { '!' } else { ' ' },
                c.name,
                c.parent,
                c.candidate
            );
            text += &format!("  {:>+7.3} [{:+.3}, {:+.3}]  {limit:>8}\n", d.mean, d.lower, d.upper);
        }
        for anchor in &examination.anchors {
            let held = match (anchor.held, anchor.held_before) {
                (true, _) => "holds",
                (false, true) => "does not hold, the parent's answer did",
                (false, false) => "does not hold, nor did the parent's answer",
            };
            text += &format!("  anchor {}: {held}\n", anchor.name);
        }
    }
    if let Some(trial) = &said.trial {
        let share = 100.0 * trial.share;
        text += &format!(
            "\ntrial with {share:.0}% of the users; {} ratings of its answers, {} of the parent's\n",
            trial.candidate_ratings, trial.parent_ratings
        );
        for (name, i) in [
            ("mean rating", &trial.rating),
            ("share rated", &trial.rated),
            ("regenerated", &trial.regenerated),
            ("corrected", &trial.corrected),
        ] {
            text += &format!("  {name:<18}  {:>+7.3} [{:+.3}, {:+.3}]\n", i.mean, i.lower, i.upper);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_marks_the_active_version_and_says_what_became_of_the_others() {
        let info = |version, active| VersionInfo {
            version: PolicyVersion(version),
            parent: version.checked_sub(1).map(PolicyVersion),
            active,
            created: 0,
            metrics: Default::default(),
            ruling: None,
        };
        let ruled = |version, ruling| VersionInfo { ruling: Some(ruling), ..info(version, false) };
        let all = [info(0, false), info(1, true), ruled(2, Ruling::Proposed), ruled(3, Ruling::RolledBack)];
        let text = table(&all);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("        0       -"), "{text}");
        assert!(lines[2].starts_with("*       1       0"), "{text}");
        assert!(lines[3].starts_with("?       2       1") && lines[3].ends_with("  proposed"), "{text}");
        assert!(lines[4].ends_with("  rolled back"), "{text}");
        let said = "`apad versions activate 2` serves it, `apad versions activate 1` refuses it";
        assert!(lines[5].ends_with(said), "{text}");
    }
}
