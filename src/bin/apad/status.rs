//! `apad status`: prints what a running daemon does. Changes nothing.

use anyhow::Result;
use apa::engine::{Status, UnlearnStatus, WeightFormat};
use apa::shown::shown_lines;
use clap::Args;

use crate::client::Daemon;

/// Show what a running daemon does: requests, versions, trainer
#[derive(Args)]
#[command(after_help = "Examples:\n  apad status --json\n  apad status --health   (for a container's health check)")]
pub struct Options {
    #[command(flatten)]
    daemon: Daemon,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only ask whether it takes requests, which needs no key: exit code 0 if so, else 1
    #[arg(long, conflicts_with = "json")]
    health: bool,
}

pub async fn run(options: Options) -> Result<()> {
    let client = options.daemon.client()?;
    if options.health {
        println!("{}", client.health().await?);
        return Ok(());
    }
    let status = client.status().await?;
    if options.json {
        println!("{}", crate::json_text(&status)?);
    } else {
        print!("{}", shown_lines(&table(&status)));
    }
    Ok(())
}

fn table(status: &Status) -> String {
    let (t, load) = (&status.trainer, &status.load);
    let reason = t.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default();
    let mut rows = vec![
        ("model", format!("{} ({})", status.model, status.architecture)),
        ("served as", served_as(&status.format)),
        ("policy version", status.policy_version.to_string()),
        ("requests", format!("{} running, {} waiting, {} done", load.running, load.queued, load.completed)),
        ("tokens", format!("{} generated, {} of prompts", load.generated_tokens, load.prompt_tokens)),
        ("trainer", format!("{}{reason}", t.state)),
        ("ratings", format!("{} of {} for the next step", t.pending_ratings, t.batch)),
        (
            "steps",
            format!(
                "{} published, {} skipped, {} refused, {} taken back",
                t.steps, t.skipped, t.refused, t.rolled_back
            ),
        ),
    ];
    if let Some(on) = &t.trial {
        let ratings = on.record.as_ref().map_or((0, 0), |r| (r.candidate_ratings, r.parent_ratings));
        let (share, version, parent) = (100.0 * on.share, on.version, on.parent);
        rows.push((
            "trial",
            format!(
                "version {version} with {share:.0}% of the users: {} ratings of it, {} of version {parent}",
                ratings.0, ratings.1
            ),
        ));
    }
    if let Some(last) = t.proposals.last() {
        let all: Vec<String> = t.proposals.iter().map(|version| version.to_string()).collect();
        let said = format!("version {} waits for a person: `apad versions activate {last}`", all.join(", "));
        rows.push(("proposed", said));
    }
    if let Some(on) = &t.unlearning {
        let UnlearnStatus { replayed, batches, seconds_left, .. } = on;
        rows.push(("unlearning", format!("{replayed} of {batches} batches replayed, some {seconds_left:.0} s left")));
    }
    if let Some(last) = &t.last {
        let (reward, kl, length) = (last.mean_reward, last.kl_per_response, last.mean_length);
        rows.push(("last batch", format!("reward {reward:+.3}, KL {kl} a response, {length:.1} tokens")));
    }
    if let Some(disk) = &status.disk {
        let free = disk.free.map(|free| format!("; {} free", size(free))).unwrap_or_default();
        let all = disk.ledger + disk.versions + disk.reward + disk.other;
        let (ledger, versions, reward, other) =
            (size(disk.ledger), size(disk.versions), size(disk.reward), size(disk.other));
        let (states, aside) = (size(disk.states), size(disk.aside));
        let parts = format!(
            "record {ledger}, versions {versions} (training state {states}, set aside {aside}), reward {reward}, \
             other {other}"
        );
        rows.push(("disk", format!("{}: {parts}{free}", size(all))));
    }
    rows.extend(status.alerts.iter().map(|alert| ("alert", format!("{}: {}", alert.kind.as_str(), alert.message))));
    rows.iter().map(|(name, value)| format!("{name:15} {value}\n")).collect()
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

fn served_as(format: &WeightFormat) -> String {
    let Some(of_it) = format.measured.iter().find(|m| m.kind == format.kind) else { return format.kind.clone() };
    format!("{} ({:.2} times as fast as the file, KL {} a token)", format.kind, of_it.speedup, of_it.kl_per_token)
}

#[cfg(test)]
mod tests {
    use apa::engine::TrainerState;
    use apa::types::PolicyVersion;

    use super::*;

    #[test]
    fn what_waits_for_a_person_is_said_and_no_word_moves_the_cursor() {
        let mut status = Status { model: "a\u{1b}[31mb".into(), ..Status::default() };
        status.trainer.proposals = vec![PolicyVersion(2), PolicyVersion(3)];
        let said = table(&status);
        assert!(
            said.contains("proposed        version 2, 3 waits for a person: `apad versions activate 3`\n"),
            "{said}"
        );
        assert!(shown_lines(&said).contains("a\\u{1b}[31mb"));
    }

    #[test]
    fn the_table_says_why_the_trainer_is_off() {
        let mut status = Status { model: "tiny".into(), ..Status::default() };
        status.trainer.state = TrainerState::Unsupported;
        status.trainer.reason = Some("no trainer for mamba".into());
        assert!(table(&status).contains("trainer         unsupported (no trainer for mamba)\n"));
    }
}
