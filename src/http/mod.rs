//! The HTTP service: turns requests into engine calls, and results into OpenAI-shaped responses. The only user of axum;
//! holds no state of its own.

mod answers;
mod anthropic;
mod auth;
mod background;
mod body;
mod connections;
mod control;
mod dialect;
mod dialect_schemas;
mod error;
mod events;
mod generate;
mod keys;
mod kinds;
mod limits;
mod live;
mod markdown;
mod models;
mod openapi;
mod origin;
mod page;
mod responses;
mod schemas;
mod score;
mod shape;
mod socket;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::config::HttpConfig;
use crate::engine::Engine;
use crate::error::{Error, Result};
use auth::{Keys, operator};
use connections::Connections;
use error::{ApiError, ApiResult};
use origin::Origins;

pub use background::Background;
pub use keys::{Key, Scope, add_key, read_keys, revoke_key};
pub use markdown::markdown;

/// Time that running answers get to end after a shutdown request.
const DRAIN: Duration = Duration::from_secs(30);
/// Polling interval for remaining requests.
const LOOK: Duration = Duration::from_millis(20);
/// Time for the last responses to reach their clients.
const FLUSH: Duration = Duration::from_secs(1);

/// State shared by all handlers.
struct App {
    engine: Engine,
    /// The model's name in responses and in `/v1/models`; the base model never changes while the process runs.
    model: String,
    started: u64,
    keys: Keys,
    origins: Origins,
    body_limit: usize,
    patience: Duration,
    /// Set once, at the end; whoever streams without an end of its own listens to it.
    draining: watch::Sender<bool>,
    /// A step blocks a thread while it trains, so only one at a time is accepted.
    step: Arc<Semaphore>,
}

impl App {
    /// Whether the service is shutting down and accepts nothing new.
    fn draining(&self) -> bool {
        *self.draining.borrow()
    }
}

/// Checks whether `config` may be served on `address`. [`serve`] checks it too; this is for callers with slow work
/// before.
///
/// # Errors
/// `Arg` for an address beyond loopback without keys, or for a key file without a key; `Io` if that file can't be read.
pub fn check(config: &HttpConfig, address: SocketAddr) -> Result<()> {
    Keys::load(config, address).map(|_| ())
}

/// Serves `engine` on `listener` until `shutdown` resolves; then refuses new generations, which `/health` reports, and
/// gives running ones 30 seconds. The engine stays open.
///
/// # Errors
/// As [`check`], and `Io` if the listener has no address.
pub async fn serve(
    engine: Engine,
    listener: TcpListener,
    config: &HttpConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let keys = Keys::load(config, listener.local_addr()?)?;
    transfer::tidy(&engine.config().data);
    let patience = Duration::from_secs(u64::from(config.read_seconds));
    let app = Arc::new(App {
        model: engine.status().model,
        engine,
        started: crate::system::unix_millis() / 1000,
        keys,
        origins: Origins::new(&config.origins),
        body_limit: config.body_limit,
        patience,
        draining: watch::Sender::new(false),
        step: Arc::new(Semaphore::new(1)),
    });
    let mut connections = Connections::new(router(app.clone()), config.connections, patience);
    let deadline = tokio::select! {
        () = connections.accept(&listener) => None,
        deadline = async { shutdown.await; drain(&app).await } => Some(deadline),
    };
    // Clients that connect from now on should not wait for a response.
    drop(listener);
    let left = deadline.map_or(FLUSH, |deadline| deadline.saturating_duration_since(Instant::now()).max(FLUSH));
    connections.close(left).await;
    Ok(())
}

/// Waits until no request is running or queued, at most [`DRAIN`]; returns when that time ends.
async fn drain(app: &App) -> Instant {
    let deadline = Instant::now() + DRAIN;
    app.draining.send_replace(true);
    let busy = || {
        let status = app.engine.status();
        status.load.running + status.load.queued > 0
    };
    while busy() {
        if Instant::now() >= deadline {
            tracing::warn!(seconds = DRAIN.as_secs(), "answers still running after the drain, cancelling them");
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    deadline
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/page/{name}", get(page::part))
        .route("/v1/events", operator(get(live::events)))
        .route("/props", get(models::properties))
        .route("/apply-template", post(models::apply_template))
        .route("/v1/policy/figures", operator(get(models::figures)))
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completion))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/responses/{id}", get(responses::response).delete(responses::drop_response))
        .route("/v1/score", post(score::score))
        .route("/v1/rerank", post(score::rerank))
        .route("/tokenize", post(control::tokenize))
        .route("/detokenize", post(control::detokenize))
        .route("/v1/embeddings", post(control::embeddings))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
        .route("/v1/models", get(models::models))
        .route("/v1/models/{*id}", get(models::model))
        .route("/v1/generations/{id}", get(control::generation))
        .route("/v1/feedback", post(control::feedback))
        .route("/v1/preferences", post(control::preference))
        .route("/v1/feedback/reviews", operator(get(control::reviews).post(control::review)))
        .route("/v1/forget", post(control::forget))
        .route("/v1/policy/versions", operator(get(control::versions)))
        .route("/v1/policy/versions/{version}", operator(get(control::version)))
        .route("/v1/policy/versions/{version}/snapshot", operator(get(transfer::snapshot)))
        .route("/v1/policy/restore", operator(post(transfer::restore)))
        .route("/v1/samples", operator(post(transfer::sample)))
        .route("/v1/policy/verdicts", operator(get(control::verdicts)))
        .route("/v1/policy/aside", operator(get(control::aside)))
        .route("/v1/policy/adopt", operator(post(control::adopt)))
        .route("/v1/policy/activate", operator(post(control::activate)))
        .route("/v1/policy/rollback", operator(post(control::rollback)))
        .route("/v1/trainer", operator(get(control::trainer)))
        .route("/v1/trainer/rollout", operator(post(control::roll_out)))
        .route("/v1/trainer/step", operator(post(control::step)))
        .route("/v1/status", operator(get(control::status)))
        .route("/health", get(control::health))
        .route("/metrics", operator(get(control::metrics)))
        .fallback(control::no_route)
        .method_not_allowed_fallback(control::no_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::guard))
        .layer(middleware::from_fn_with_state(app.clone(), origin::guard))
        // `body::Body` applies the limit from the settings.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// Runs an engine call that may wait for the disk or the trainer, on a thread where it delays no other request.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(e) if e.is_panic() => Err(Error::panic("a bug stopped this request; the log has the details").into()),
        Err(_) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "closed", "the service is shutting down")),
    }
}
