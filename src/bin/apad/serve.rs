//! `apad serve`: the daemon. Opens the engine, serves it, and drains on a signal.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use apa::{Engine, http};
use clap::Args;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::WrongUse;
use crate::pull;
use crate::settings::Overrides;

/// Serve a model, take ratings, learn from them, publish what was learned
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad serve --model smollm2-135m-instruct
  apad serve --model base.gguf --data /var/lib/apad --listen 127.0.0.1:9000 --set train.lambda=0.2")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<String>,
    /// Folder of the record and the versions, one daemon a folder (default: apa-data)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on; beyond loopback, http.keys must name a key file (default: 127.0.0.1:8372)
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where to train: auto, cpu or cuda:N (default: auto)
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// New ratings that start a training step (default: 16)
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Larger stays closer to the initial model (default: 0.1)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// Requests decoded together (default: 8)
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// Number format of the served weights: keep, auto (the fastest here, measured at the first start), q4_0, q8_0,
    /// bf16 or another of llama.cpp's (default: keep)
    #[arg(long, value_name = "TYPE")]
    serve_type: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
}

pub async fn run(options: Options) -> Result<()> {
    // What it records is for its user alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut config = options.overrides.build([
        ("model", options.model.map(Value::from)),
        ("data", options.data.map(|p| p.to_string_lossy().into_owned().into())),
        ("http.listen", options.listen.map(Value::from)),
        ("train.device", options.device.map(Value::from)),
        ("train.batch", options.batch.map(Value::from)),
        ("train.lambda", options.lambda.map(Value::from)),
        ("serve.slots", options.slots.map(Value::from)),
        ("serve.type", options.serve_type.map(Value::from)),
    ])?;
    if config.model.as_os_str().is_empty() {
        return Err(WrongUse("no model, expected --model PATH or a name that `apad pull --list` shows".into()).into());
    }
    let listener = listen(&config.http.listen).await?;
    let address = listener.local_addr()?;
    http::check(&config.http, address)?;
    config.model = pull::resolve(&config.model).await?;

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
        std::process::exit(130);
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
