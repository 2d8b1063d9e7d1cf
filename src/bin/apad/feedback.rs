//! `apad import`, `apad export` and `apad review`: feedback in, out, and whose counts.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use apa::config::Config;
use apa::engine::exchange::{self, Imported};
use apa::gguf::Gguf;
use apa::ledger::{Ledger, LedgerReader, LeftOut, Place, ReviewEntry, Rules};
use apa::llama::Model;
use apa::overwrite::{Form, check_target, write_whole};
use apa::reward::read_judgements;
use apa::shown::shown;
use clap::{Args, Subcommand};

use crate::client::Daemon;
use crate::pull;
use crate::settings::{Overrides, ledger_url};

/// Most lines that are reported one by one.
const NAMED: usize = 20;

/// Take feedback in from a file
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad import feedback pairs.jsonl.gz --model smollm2-135m-instruct --data apa-data
  apad import feedback thumbs.jsonl --model base.gguf --data apa-data --user reviewers")]
pub struct Import {
    #[command(subcommand)]
    what: ImportWhat,
}

#[derive(Subcommand)]
enum ImportWhat {
    /// Ratings and preferences: TRL's prompt/chosen/rejected and prompt/completion/label, HH transcripts, messages with
    /// thumbs, and what `apad export feedback` writes; JSON lines, gzipped or not
    #[command(after_help = "\
Example:
  apad import feedback thumbs.jsonl.gz --model base.gguf --data apa-data

The daemon of the data folder must not run meanwhile. Lines that can't be used are named and left out; what was
imported before is not imported again.")]
    Feedback(ImportFeedback),
}

#[derive(Args)]
struct ImportFeedback {
    /// The file
    file: PathBuf,
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Data folder that takes it in
    #[arg(long, value_name = "DIR", default_value_os_t = Config::default().data)]
    data: PathBuf,
    /// Whom it is from, where the file doesn't tell
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn import(options: Import) -> Result<()> {
    let ImportWhat::Feedback(options) = options.what;
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || import_feedback(&options, &model)).await?
}

fn import_feedback(options: &ImportFeedback, path: &Path) -> Result<()> {
    let file = read_judgements(&options.file)?;
    if file.entries.is_empty() {
        // Before a data folder is made for nothing.
        return told(options, Imported { refused: file.refused, ..Imported::default() });
    }
    let model = Model::load(path, 0)?;
    let named = ("model", Some(path.to_string_lossy().into_owned()));
    let settings = options.overrides.build([named])?;
    let new = !options.data.exists();
    let url = settings.ledger.url.as_deref();
    let ledger = Ledger::open_with(Place::new(&options.data, url), Rules::new(&settings.reward)?)?;
    ledger.bind_model(&Gguf::open(path)?.fingerprint()?, model.name())?;
    let mut done = exchange::import(&ledger, &model, &file.entries, options.user.as_deref())?;
    done.refused.extend(file.refused);
    if new && done.nothing() {
        drop(ledger);
        Ledger::take_back(&options.data);
    }
    told(options, done)
}

/// Says what was imported, and fails if that is nothing.
fn told(options: &ImportFeedback, mut done: Imported) -> Result<()> {
    done.refused.sort_by_key(|r| r.line);
    for line in done.refused.iter().take(NAMED) {
        let (file, reason) = (options.file.to_string_lossy(), shown(&line.reason));
        eprintln!("{}:{}: left out: {reason}", shown(&file), line.line);
    }
    if options.json {
        println!("{}", crate::json_text(&done)?);
    } else {
        let Imported { ratings, preferences, others, known, refused } = &done;
        let refused = refused.len();
        println!(
            "{ratings} ratings, {preferences} preferences, {others} corrections, signals and remarks; {known} were on \
             record, {refused} left out"
        );
    }
    if done.nothing() {
        bail!("{} holds nothing that can be used", options.file.display());
    }
    Ok(())
}

/// What `apad export` writes beside adapters.
#[derive(Subcommand)]
pub enum Export {
    /// All feedback and preferences, a JSON line each, in TRL's fields and ours; the daemon may run meanwhile
    #[command(after_help = "Example:\n  apad export feedback --model base.gguf --data apa-data --out feedback.jsonl")]
    Feedback(ExportFeedback),
}

#[derive(Args)]
pub struct ExportFeedback {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: PathBuf,
    /// Data folder
    #[arg(long, value_name = "DIR", default_value_os_t = Config::default().data)]
    data: PathBuf,
    /// File to write (default: standard output)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub async fn export(options: Export) -> Result<()> {
    let Export::Feedback(options) = options;
    let model = pull::resolve(&options.model).await?;
    tokio::task::spawn_blocking(move || export_feedback(&options, &model)).await?
}

fn export_feedback(options: &ExportFeedback, path: &Path) -> Result<()> {
    let url = ledger_url(&options.data)?;
    let ledger = LedgerReader::open(Place::new(&options.data, url.as_deref()))?;
    let base = Gguf::open(path)?.fingerprint()?;
    if ledger.model_fingerprint()?.is_some_and(|bound| bound != base) {
        bail!("{} belongs to another base model than {}", options.data.display(), path.display());
    }
    let model = Model::load(path, 0)?;
    let write = |out: &mut dyn Write| {
        ledger.for_each(&mut |said| Ok(writeln!(out, "{}", exchange::line(&model, &base, said))?))?;
        Ok(out.flush()?)
    };
    match &options.out {
        Some(file) => write_whole(&check_target(file, Form::Lines, &[path, &options.data])?, write)?,
        None => write(&mut BufWriter::new(crate::Output::held()))?,
    }
    Ok(())
}

/// List users whose feedback waits for review, or decide about one
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad review
  apad review --user ann trust

A user whose ratings disagree with others' of the same answers is held until someone decides: trust (it counts),
hold (it waits), reject (what waits and what comes is left out; it is kept all the same).")]
pub struct Review {
    /// Whom to decide about
    #[arg(long, value_name = "NAME", requires = "verdict")]
    user: Option<String>,
    /// trust, hold or reject
    #[arg(value_parser = ["trust", "hold", "reject"], requires = "user")]
    verdict: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: Daemon,
}

pub async fn review(options: Review) -> Result<()> {
    let client = options.daemon.client()?;
    if let (Some(user), Some(verdict)) = (&options.user, &options.verdict) {
        client.review(user, verdict).await?;
    }
    let list = client.reviews().await?;
    if options.json {
        println!("{}", crate::json_text(&list)?);
        return Ok(());
    }
    if list.data.is_empty() && list.left_out.is_empty() {
        println!("nobody's feedback waits for review");
    }
    for ReviewEntry { user, compared, disagreed, waiting, verdict } in list.data {
        let verdict = verdict.map_or_else(|| "held for review".to_owned(), |v| format!("{v:?}").to_lowercase());
        let user = shown(&user);
        println!("{user}: {verdict}; disagreed in {disagreed} of {compared} comparisons, {waiting} wait");
    }
    for LeftOut { feedback_id, generation_id, reason, .. } in list.left_out {
        println!("feedback {feedback_id} on {generation_id}: left out, {}", shown(&reason));
    }
    Ok(())
}
