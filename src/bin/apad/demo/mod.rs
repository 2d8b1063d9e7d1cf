//! `apad demo`: the whole loop on a real model with simulated users, and a report of the results.

mod browser;
mod daemon;
mod distance;
mod interrupt;
mod page;
mod prompts;
mod report;
mod screen;
mod taste;
mod users;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use apa::config::Config;
use apa::overwrite::check_target_folder;
use apa::types::{Generation, GenerationId, PolicyVersion, TokenId};
use clap::Args;

use self::daemon::Daemon;
use self::interrupt::Interrupt;
use self::prompts::Deck;
use self::report::{HEAD, Measured, Pair, Report, WANTED_RISE, mean_and_error};
use self::screen::Screen;
use self::users::{Rated, Users, cut_off, mean, one_version};
use crate::flags::defaults;
use crate::pull;
use crate::settings::Overrides;

/// Held-back prompts that are shown with both answers.
const SHOWN: usize = 8;

/// Settings that the report names; the demo holds them at their defaults.
const NAMED: &[&str] = &[
    "train.algorithm",
    "train.lambda",
    "train.batch",
    "train.minibatch",
    "train.epochs",
    "train.lr",
    "train.critic_lr",
    "train.rank",
    "train.alpha",
    "train.clip_norm",
];

/// Show the whole loop: a daemon, simulated users who rate its answers, and a model that learns their taste
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad demo --model smollm2-135m-instruct
  apad demo --model base.gguf --batches 40 --seed 2 --data kept --out report --set train.lambda=0.2

The report goes to DIR: report.html, curves.png, report.json. Exit code 1 if the mean reward of held-back prompts
did not rise by 0.5.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME", default_value = "smollm2-135m-instruct")]
    model: PathBuf,
    /// Keeps the record and the versions in this folder, which must not hold any yet (default: a folder that is
    /// removed)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of the report
    #[arg(long, value_name = "DIR", default_value = "apad-demo")]
    out: PathBuf,
    /// Batches of ratings, one training step each
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batches: u32,
    /// Seeds the prompts' order, sampling and the adapters
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Don't open the daemon's page in a browser
    #[arg(long)]
    no_browser: bool,
    /// Print the report as JSON on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

pub async fn run(options: Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    // Made now, since a report that can't be written should be known before eight minutes have passed.
    let missing: Vec<PathBuf> = options.out.ancestors().take_while(|p| !p.exists()).map(PathBuf::from).collect();
    std::fs::create_dir_all(&options.out).with_context(|| format!("creating {}", options.out.display()))?;
    let outcome = show(&options, &interrupt).await;
    if outcome.is_err() {
        // Only those that are empty.
        missing.iter().take_while(|made| std::fs::remove_dir(made).is_ok()).for_each(drop);
    }
    outcome
}

async fn show(options: &Options, interrupt: &Interrupt) -> Result<()> {
    let data = DataFolder::new(options.data.as_deref())?;
    let mut config = settings(options, &data.path)?;
    config.model = interrupt.or(pull::resolve(&config.model)).await?;
    check_target_folder(&options.out, &page::FILES, &[&config.model])?;

    let screen = Screen::new(options.batches.into(), options.json);
    let report = demo(options, config, &screen, interrupt).await;
    screen.finish();
    let report = report?;

    screen.line(&report.side_by_side_text());
    page::write(&options.out, &report)?;
    screen.line(&format!("report: {}", options.out.join("report.html").display()));
    if options.json {
        println!("{}", crate::json_text(&report)?);
    }
    screen.line(&report.last_line());
    if !report.reached {
        bail!("the mean reward of held-back prompts rose by {:.2}, expected at least {WANTED_RISE}", report.rise());
    }
    Ok(())
}

/// The settings of the demo; `--set` changes any of them.
fn settings(options: &Options, data: &Path) -> Result<Config> {
    let text = |path: &Path| Some(path.to_string_lossy().into_owned());
    let own = [
        ("model", text(&options.model)),
        ("data", text(data)),
        // Nothing made up goes into anyone's record.
        ("ledger.url", Some(String::new())),
        // The answers of a batch of ratings are decoded together.
        ("serve.slots", Some("16".into())),
        // The plain policy, whatever the model's file recommends: what is learned shows without filters.
        ("serve.sampling.recommended", Some("false".into())),
        // Half of the usual number, to keep the demo short.
        ("gate.count", Some("8".into())),
        ("train.seed", Some(options.seed.to_string())),
    ];
    options.overrides.build(own.into_iter().chain(defaults(NAMED)).chain(defaults(&["train.enabled", "train.auto"])))
}

/// The raw results, before anything is computed from them.
struct Seen {
    rows: Vec<report::Row>,
    before: Vec<Rated>,
    after: Vec<Rated>,
    /// The answers of `after` with their tokens.
    after_tokens: Vec<Generation>,
    /// Tokens of the plain sentences.
    texts: Vec<Vec<TokenId>>,
    side_by_side: Vec<Pair>,
}

async fn demo(options: &Options, config: Config, screen: &Screen, interrupt: &Interrupt) -> Result<Report> {
    let start = Instant::now();
    screen.line(&format!("simulated users' taste: {}", taste::IN_WORDS));
    screen.wait("loading the model");
    let daemon = Daemon::start(config.clone()).await?;
    let status = daemon.client.status().await?;
    screen.line(&format!(
        "model: {} ({}), served on {}; {} batches of {} ratings\n\n{HEAD}",
        status.model, status.architecture, daemon.url, options.batches, config.train.batch
    ));
    if !options.no_browser {
        browser::show(&format!("{}/#/learning", daemon.url));
    }
    let seen = interrupt.or(see(options, &config, screen, &daemon)).await;
    daemon.stop().await?;
    let seen = seen?;
    let named = serde_json::to_value(&config.train)?;

    screen.wait("measuring the distance");
    let (mut before, mut after) = (measured(&seen.before)?, measured(&seen.after)?);
    let last = PolicyVersion(after.version);
    let (answers, texts) = (seen.after_tokens, seen.texts);
    let distance = tokio::task::spawn_blocking(move || distance::measure(&config, last, &answers, &texts));
    let distance = interrupt.or(async { distance.await? }).await?;
    (before.kl_per_response, after.kl_per_response) = (Some(0.0), Some(distance.kl_per_response.0));
    [before.text_logprob, after.text_logprob] = distance.text_logprobs.map(Some);
    screen.line(&after.line());

    let mut report = Report {
        model: status.model,
        taste: taste::IN_WORDS.into(),
        seed: options.seed,
        settings: NAMED
            .iter()
            .map(|key| ((*key).to_owned(), named[key.trim_start_matches("train.")].to_string()))
            .collect(),
        rows: seen.rows,
        before,
        after,
        side_by_side: seen.side_by_side,
        reached: false,
        seconds: start.elapsed().as_secs_f64(),
    };
    report.reached = report.rise() >= WANTED_RISE;
    Ok(report)
}

async fn see(options: &Options, config: &Config, screen: &Screen, daemon: &Daemon) -> Result<Seen> {
    let users = Users { client: &daemon.client, at_once: 2 * config.serve.slots as usize, screen };
    // The seeds of held-back prompts don't depend on --seed: every run is measured with the same dice.
    let held_back: Vec<_> = prompts::held_back().into_iter().zip(1_000_000..).collect();
    let before = users.ask("held-back prompts, first", &held_back).await?;
    screen.line(&Measured { kl_per_response: Some(0.0), ..measured(&before)? }.line());

    let mut deck = Deck::new(options.seed);
    let mut dice = options.seed.wrapping_mul(1_000_003)..;
    let mut rows = Vec::new();
    for _ in 0..options.batches {
        let batch: Vec<_> = deck.draw(config.train.batch as usize).into_iter().zip(&mut dice).collect();
        let row = users.teach(&batch).await?;
        screen.line(&row.line());
        rows.push(row);
        screen.batch_done();
    }

    let last = daemon.client.status().await?.policy_version;
    let after = users.ask("held-back prompts, last", &held_back).await?;
    // The initial model once more: what was learned is a file, and can be put aside.
    daemon.client.activate(PolicyVersion::INITIAL, false).await?;
    let first = users.ask("the first version again", &held_back[..SHOWN.min(held_back.len())]).await?;
    daemon.client.activate(last, false).await?;
    if one_version(&first)? != PolicyVersion::INITIAL || one_version(&after)? != last {
        bail!("answers came from another version than the active one");
    }
    let side_by_side = held_back
        .iter()
        .zip(first.iter().zip(&after))
        .map(|((prompt, _), (a, b))| Pair { prompt: (*prompt).into(), before: a.shown(), after: b.shown() })
        .collect();
    let after_tokens = generations(daemon, &after)?;
    let texts = distance::texts().map(|text| daemon.engine().tokenize(text)).collect::<apa::Result<_>>()?;
    Ok(Seen { rows, before, after, after_tokens, texts, side_by_side })
}

/// The recorded answers, with their tokens.
fn generations(daemon: &Daemon, rated: &[Rated]) -> Result<Vec<Generation>> {
    let find = |r: &Rated| {
        let id = GenerationId(r.answer.id.clone());
        daemon.engine().generation(&id)?.with_context(|| format!("answer {id} is not in the record"))
    };
    rated.iter().map(find).collect()
}

fn measured(rated: &[Rated]) -> Result<Measured> {
    let rewards: Vec<_> = rated.iter().map(|r| r.reward).collect();
    let (mean_reward, standard_error) = mean_and_error(&rewards);
    Ok(Measured {
        version: one_version(rated)?.0,
        prompts: rated.len(),
        mean_reward,
        standard_error,
        mean_tokens: mean(rated, |r| f64::from(r.answer.usage.completion_tokens)),
        cut_off: cut_off(rated),
        kl_per_response: None,
        text_logprob: None,
    })
}

/// The daemon's data: the user's folder, or a temporary one that is removed at the end.
struct DataFolder {
    path: PathBuf,
    temporary: bool,
}

impl DataFolder {
    fn new(chosen: Option<&Path>) -> Result<Self> {
        let Some(path) = chosen else {
            let path = std::env::temp_dir().join(format!("apad-demo-{}", std::process::id()));
            return Ok(Self { path, temporary: true });
        };
        // Starting from earlier training would mistake a trained model for the initial one.
        if path.join("ledger.sqlite3").exists() {
            bail!("{} holds a record already, expected a folder without one: the demo starts anew", path.display());
        }
        Ok(Self { path: path.to_owned(), temporary: false })
    }
}

impl Drop for DataFolder {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
