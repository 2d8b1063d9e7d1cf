//! `apad forget`: deletes a user's data, and with `--unlearn` has the versions replaced that learned from it. Trains
//! nothing itself.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use apa::engine::{UnlearnPlan, UnlearnReceipt};
use apa::ledger::{Forgotten, Ledger, Place, Unlearned};
use apa::types::PolicyVersion;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::client::{Client, Daemon};
use crate::settings::ledger_url;

/// How often a running replay is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Delete a user's prompts, answers and feedback
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad forget --user ann
  apad forget --user ann --data apa-data
  apad forget --user ann --unlearn --dry-run
  apad forget --user ann --unlearn

Deletes the answers made for the user with their prompts, what anyone said of those, and all they said of others'
answers, from a running daemon, or from the folder of one that doesn't run. It is overwritten on disk when the
command ends. What remains are the policy versions that learned from it, and backups that you made.

With --unlearn those versions go as well: a running daemon goes back to the last version that did not learn from the
user, trains on the recorded batches again without the user's samples, and judges the result like any other candidate.
The command says first what that takes, then follows it; ended early, it leaves the daemon at work. It has to be asked
for with the deletion: afterwards nothing tells any more which versions learned from whom.")]
pub struct Forget {
    /// The user's name, as it was given with requests and feedback
    #[arg(long, value_name = "NAME")]
    user: String,
    /// Replace the versions that learned from the user
    #[arg(long, conflicts_with = "data")]
    unlearn: bool,
    /// Only say what --unlearn takes
    #[arg(long, requires = "unlearn", conflicts_with = "data")]
    dry_run: bool,
    /// Data folder of a daemon that doesn't run
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON; with --unlearn, don't follow it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: Daemon,
}

pub async fn run(options: Forget) -> Result<()> {
    if options.unlearn {
        return unlearn(options).await;
    }
    let user = options.user.clone();
    let gone: Forgotten = match options.data {
        Some(data) => {
            let url = ledger_url(&data)?;
            if !Ledger::exists(Place::new(&data, url.as_deref())) {
                bail!("{} is not there", data.join("ledger.sqlite3").display());
            }
            let forget = move || Ledger::open(Place::new(&data, url.as_deref()))?.forget(&user);
            tokio::task::spawn_blocking(forget).await??
        }
        None => options.daemon.client()?.forget(&user).await?,
    };
    if options.json {
        println!("{}", crate::json_text(&gone)?);
    } else {
        tell(&gone);
    }
    Ok(())
}

fn tell(gone: &Forgotten) {
    let Forgotten { generations, feedback, preferences, overwritten, .. } = gone;
    println!("deleted {generations} answers, {feedback} pieces of feedback, {preferences} preferences");
    if !overwritten {
        println!(
            "copies may be left: in the log, while another program reads the ledger; in Postgres, until its vacuum"
        );
    }
}

async fn unlearn(options: Forget) -> Result<()> {
    let (client, user) = (options.daemon.client()?, &options.user);
    let plan = client.unlearn_plan(user).await?;
    if options.json && options.dry_run {
        println!("{}", crate::json_text(&json!({"unlearning": plan}))?);
        return Ok(());
    }
    if !options.json {
        println!("{}", cost(plan.as_ref()));
    }
    if options.dry_run {
        return Ok(());
    }
    let receipt = client.unlearn(user).await?;
    if options.json {
        println!("{}", crate::json_text(&receipt)?);
        return Ok(());
    }
    let UnlearnReceipt { forgotten, unlearning } = receipt;
    tell(&forgotten);
    match unlearning {
        Some(plan) => follow(&client, &plan).await,
        None => Ok(()),
    }
}

/// What unlearning takes, in words.
fn cost(plan: Option<&UnlearnPlan>) -> String {
    let Some(plan) = plan else { return "no version learned from the user".to_owned() };
    let UnlearnPlan { first, back, start, versions, batches, answers, wordless, seconds } = plan;
    let mut said = format!(
        "version {first} was the first to learn from the user; it and all later ones will be removed: {versions} on \
         record\n"
    );
    if *batches == 0 {
        return said + "what serves did not learn from the user, so nothing is trained again";
    }
    let many = if *batches == 1 { "batch" } else { "batches" };
    said += &format!(
        "{batches} {many} of {answers} answers are trained on again without the user's, from version {start}; they \
         took {seconds:.0} s at first\nif the result is refused, version {back} serves"
    );
    if *wordless > 0 {
        said += &format!("\n{wordless} answers are too old to be on record (ledger.keep_days), and are lost to it");
    }
    said
}

/// What became of the version that was learned without the user, after the one that serves.
fn outcome(Unlearned { version, reason }: &Unlearned, serving: PolicyVersion) -> String {
    match version.filter(|version| *version != serving) {
        Some(version) => format!("; of version {version}, learned without the user: {reason}"),
        None => format!("; {reason}"),
    }
}

async fn follow(client: &Client, plan: &UnlearnPlan) -> Result<()> {
    let bar = ProgressBar::new(plan.batches as u64);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos} of {len} batches  {msg}")?);
    let mut logged = 0;
    loop {
        let status = client.trainer().await?;
        let Some(on) = status.unlearning else {
            bar.finish_and_clear();
            let serving = client.status().await?.policy_version;
            println!(
                "version {serving} serves{}",
                status.unlearned.map_or_else(String::new, |end| outcome(&end, serving))
            );
            return Ok(());
        };
        bar.set_position(on.replayed as u64);
        bar.set_message(match &status.reason {
            Some(reason) => reason.clone(),
            None if on.replayed == on.batches => "being judged".to_owned(),
            None => format!("some {:.0} s left", on.seconds_left),
        });
        if bar.is_hidden() && on.replayed > logged {
            logged = on.replayed;
            println!("{} of {} batches, some {:.0} s left", on.replayed, on.batches, on.seconds_left);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_told_in_words() {
        assert_eq!(cost(None), "no version learned from the user");
        let mut plan = UnlearnPlan { versions: 3, batches: 5, answers: 60, seconds: 72.4, ..UnlearnPlan::default() };
        (plan.first.0, plan.back.0, plan.start.0) = (4, 3, 0);
        assert_eq!(
            cost(Some(&plan)),
            "version 4 was the first to learn from the user; it and all later ones will be removed: 3 on record\n5 \
             batches of 60 answers are trained on again without the user's, from version 0; they took 72 s at first\n\
             if the result is refused, version 3 serves"
        );
        plan.wordless = 2;
        assert!(
            cost(Some(&plan))
                .ends_with("\n2 answers are too old to be on record (ledger.keep_days), and are lost to it")
        );
        plan.batches = 0;
        assert!(cost(Some(&plan)).ends_with("nothing is trained again"));
    }
}
