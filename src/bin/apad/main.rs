//! The command line. Arguments, logging and exit codes; the work is the library's.

mod allocator;
mod answer;
mod backup;
mod bars;
mod bench;
mod chat;
mod client;
mod config;
mod convert;
mod demo;
mod doctor;
mod export;
mod feedback;
mod flags;
mod forget;
mod keys;
mod logging;
mod logprobs;
mod models;
mod plot;
mod pull;
mod reward;
mod serve;
mod settings;
mod status;
mod train;
mod versions;
mod vllm;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use apa::shown::{shown_json, shown_lines};
use clap::{Parser, Subcommand};
use serde::Serialize;

/// Training and serving allocate large buffers in turns; the system's allocator would return and zero them every time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves a language model and keeps aligning it with the people who use it.
#[derive(Parser)]
#[command(name = "apad", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    logging: logging::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Pull(pull::Options),
    Models(models::Options),
    Serve(serve::Options),
    Chat(chat::Options),
    Demo(demo::Options),
    Train(Box<train::Options>),
    Reward(reward::Options),
    Import(feedback::Import),
    Forget(forget::Forget),
    Review(feedback::Review),
    Status(status::Options),
    Config(config::Options),
    Keys(keys::Options),
    Doctor(doctor::Options),
    Versions(versions::Options),
    Export(export::Options),
    Convert(convert::Options),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Logprobs(logprobs::Options),
    Bench(bench::Options),
}

impl Command {
    /// Whether what it writes is no user's words, and no weights that learned from them: others' models, and reports on
    /// the machine.
    fn writes_what_is_public(&self) -> bool {
        use Command::{Config, Convert, Doctor, Models, Pull};
        matches!(self, Pull(_) | Models(_) | Convert(_) | Doctor(_) | Config(_))
    }
}

/// Makes files that this process creates readable by its user alone.
fn keep_files_private() {
    let others = rustix::fs::Mode::from_raw_mode(0o077);
    let masked = rustix::process::umask(others);
    rustix::process::umask(masked | others);
}

/// Wrong use that only shows after the arguments were parsed: exit code 2 instead of 1.
#[derive(Debug)]
pub struct WrongUse(pub String);

impl std::fmt::Display for WrongUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUse {}

/// A command that Ctrl-C ended, after it put away what it had begun.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Exit code that shells use for a program ended by Ctrl-C.
const INTERRUPTED: u8 = 130;
/// Exit code that shells use for a program ended by a closed pipe.
const BROKEN_PIPE: i32 = 141;

/// Ends a command silently when its reader leaves, as `head` does, and with one sentence when its output can't be
/// written.
fn end_quietly_on_a_closed_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        // The panic message of `println!` and `eprintln!`.
        if let Some(text) = text.filter(|text| text.starts_with("failed printing to std")) {
            if text.contains("Broken pipe") {
                apa::llama::exit_at_once(BROKEN_PIPE);
            }
            // A full disk, for instance. Where not even this can be said, the exit code says it.
            let _ = writeln!(std::io::stderr(), "apad: {text}");
            apa::llama::exit_at_once(1);
        }
        usual(panic);
    }));
}

/// Standard output for what is written rather than printed; it too ends the command silently when its reader leaves.
pub struct Output(std::io::StdoutLock<'static>);

impl Output {
    /// Standard output, held until it is dropped.
    pub fn held() -> Self {
        Self(std::io::stdout().lock())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes).inspect_err(end_if_nobody_reads)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().inspect_err(end_if_nobody_reads)
    }
}

fn end_if_nobody_reads(error: &std::io::Error) {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        apa::llama::exit_at_once(BROKEN_PIPE);
    }
}

/// A value as JSON for a person or a program, in which a terminal finds nothing to obey.
fn json_text(value: &impl Serialize) -> Result<String> {
    Ok(shown_json(&serde_json::to_string_pretty(value)?).into_owned())
}

/// The arguments. What is wrong about them is told without what a terminal would obey.
fn arguments() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let said = error.render().to_string();
        if !error.use_stderr() || shown_lines(&said) == said {
            error.exit();
        }
        eprint!("{}", shown_lines(&said));
        std::process::exit(error.exit_code())
    })
}

fn main() -> ExitCode {
    // Before anything that such a processor might not know.
    if let Err(error) = apa::processor::Processor::detect().suffices() {
        eprintln!("apad: {error}");
        return ExitCode::FAILURE;
    }
    allocator::keep_freed_memory();
    end_quietly_on_a_closed_pipe();
    let cli = arguments();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("apad: {}", shown_lines(&format!("{error:#}")));
            ExitCode::from(match () {
                () if error.is::<WrongUse>() => 2,
                () if error.is::<Interrupted>() => INTERRUPTED,
                () => 1,
            })
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let verbose = match &cli.command {
        Command::Serve(_) | Command::Pull(_) => true,
        // On a terminal it draws bars, and log lines would break them.
        Command::Demo(_) => !std::io::stderr().is_terminal(),
        _ => false,
    };
    cli.logging.start(verbose)?;
    if !cli.command.writes_what_is_public() {
        keep_files_private();
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Pull(options) => pull::run(options).await,
            Command::Models(options) => models::run(options).await,
            Command::Serve(options) => serve::run(options).await,
            Command::Chat(options) => chat::run(options).await,
            Command::Demo(options) => demo::run(options).await,
            Command::Train(options) => train::run(*options).await,
            Command::Reward(options) => reward::run(options).await,
            Command::Import(options) => feedback::import(options).await,
            Command::Forget(options) => forget::run(options).await,
            Command::Review(options) => feedback::review(options).await,
            Command::Status(options) => status::run(options).await,
            Command::Config(options) => config::run(options).await,
            Command::Keys(options) => keys::run(options).await,
            Command::Doctor(options) => doctor::run(options).await,
            Command::Versions(options) => versions::run(options).await,
            Command::Backup(options) => backup::run_backup(options).await,
            Command::Restore(options) => backup::run_restore(options).await,
            Command::Export(options) => export::run(options).await,
            Command::Convert(options) => convert::run(options).await,
            Command::Logprobs(options) => logprobs::run(options).await,
            Command::Bench(options) => bench::run(options).await,
        }
    });
    // A thread that still waits for a terminal's line or a training step must not keep the process.
    runtime.shutdown_background();
    result
}
