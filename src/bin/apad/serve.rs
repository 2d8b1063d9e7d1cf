//! `apad serve`: the daemon. Opens the engine, serves it, and drains on a signal.

use std::io::Write;

use anyhow::{Context, Result, bail};
use apa::{Engine, http};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::WrongUse;
use crate::flags::{Flags, Given};
use crate::pull;
use crate::settings::Overrides;

/// Serve a model, take ratings, learn from them, publish what was learned
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad serve --model smollm2-135m-instruct
  apad serve --model base.gguf --data /var/lib/apad --listen 127.0.0.1:9000 --set train.lambda=0.2")]
pub struct Options {
    /// GGUF file, name of a known model, or hf:OWNER/REPO:FILE (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<String>,
    #[command(flatten)]
    served: Given<Served>,
    #[command(flatten)]
    overrides: Overrides,
}

/// The settings that `apad serve` takes as flags.
#[derive(Clone, Debug)]
pub struct Served;

impl Flags for Served {
    const FLAGS: &'static [(&'static str, &'static str)] = &[
        ("data", "data"),
        ("listen", "http.listen"),
        ("device", "train.device"),
        ("batch", "train.batch"),
        ("lambda", "train.lambda"),
        ("role", "serve.role"),
        ("slots", "serve.slots"),
        ("serve-type", "serve.type"),
    ];
}

pub async fn run(options: Options) -> Result<()> {
    let named = ("model", options.model);
    let mut config = options.overrides.build(options.served.settings().chain([named]))?;
    if config.model.as_os_str().is_empty() {
        return Err(WrongUse("no model, expected --model PATH or a name that `apad pull --list` shows".into()).into());
    }
    let listener = listen(&config.http.listen).await?;
    let address = listener.local_addr()?;
    http::check(&config.http, address)?;
    pull::settle(&mut config).await?;

    let settings = config.clone();
    let engine = tokio::task::spawn_blocking(move || Engine::open(settings)).await??;
    let stop = stop_signal()?;
    let status = engine.status();
    // Nobody may be reading this; that must not end the daemon.
    let mut out = std::io::stdout();
    let _ =
        writeln!(out, "apad serves {} (policy version {}) on http://{address}", status.model, status.policy_version);
    let _ = out.flush();

    let served = http::serve(engine.clone(), listener, &config.http, stop).await;
    tokio::task::spawn_blocking(move || engine.shutdown()).await?;
    tracing::info!("stopped");
    Ok(served?)
}

async fn listen(address: &str) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{address} is in use, perhaps by another apad; choose an address with --listen")
        }
        Err(e) => Err(e).with_context(|| format!("can't listen on {address}")),
    }
}

/// Resolves at the first SIGTERM, SIGINT or SIGHUP; a second one ends the process at once. A process that was started
/// to outlive its terminal (`nohup`) ignores SIGHUP.
fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    let (first, asked) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || {
            let hung_up = async {
                match &mut hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => (), () = hung_up => () }
        };
        next().await;
        tracing::info!("draining; a second signal stops at once");
        let _ = first.send(());
        next().await;
        // The ledger is safe at any moment; only running answers are lost.
        apa::llama::exit_at_once(130);
    });
    Ok(async move {
        let _ = asked.await;
    })
}

/// Whether SIGHUP was ignored when the process was started. Where the system doesn't say, it was not.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, SIGHUP.
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
