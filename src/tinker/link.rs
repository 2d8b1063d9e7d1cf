//! A policy on a Tinker server: its session, its model, and the steps asked of it. After an error nothing is asked of
//! that model again.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::http::{Http, Repeat, SMALL};
use super::{Cancel, Policy, Sequence, Step, Wanted, archive, wire};
use crate::error::{Error, Result};

/// How often a session says that it lives: a server gives up those that don't.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a model that is no longer needed may take to be let go.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often a wait looks whether it is cancelled.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a reply for a token, in JSON: its loss, its log-probability.
const TOKEN_BYTES: usize = 256;
/// Rank of the adapter of the initial model, which is never trained.
const LEAST_RANK: u32 = 1;

pub(super) struct Link {
    http: Http,
    wanted: Wanted,
    session: Option<Session>,
    /// Its one thread also keeps the session alive. None once this is dropped.
    runtime: Option<Runtime>,
}

/// What there is on the server.
struct Session {
    id: String,
    base: String,
    policy: String,
    /// A model whose adapter still has no effect, from the first time that it is asked.
    reference: Option<String>,
    /// Checkpoints saved.
    saved: u64,
    heart: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

impl Link {
    pub fn new(url: &str, key: Option<&str>, wanted: Wanted) -> Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("apa-tinker").enable_all().build()?;
        Ok(Self { http: Http::new(url, key, wanted.patience)?, wanted, session: None, runtime: Some(runtime) })
    }

    /// Asks something of the session that is open. If that fails, the session is given up.
    fn with<T>(
        &mut self,
        cancel: Cancel,
        ask: impl AsyncFnOnce(&Http, &Wanted, &mut Session) -> Result<T>,
    ) -> Result<T> {
        let lost = || Error::train("the policy on the Tinker server is not open");
        let (Some(runtime), Some(session)) = (&self.runtime, &mut self.session) else { return Err(lost()) };
        let done = wait(runtime, cancel, ask(&self.http, &self.wanted, session));
        if done.is_err() {
            self.give_up();
        }
        done
    }
}

/// Runs to its end, or until cancelled.
fn wait<T>(runtime: &Runtime, cancel: Cancel, asked: impl Future<Output = Result<T>>) -> Result<T> {
    let cancelled = async {
        while !cancel() {
            tokio::time::sleep(LOOK).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            done = asked => done,
            () = cancelled => Err(Error::closed("training was stopped while the Tinker server was asked")),
        }
    })
}

impl Policy for Link {
    fn open(&mut self, at: Option<&str>, cancel: Cancel) -> Result<bool> {
        let Some(runtime) = &self.runtime else { return Err(Error::closed("the Tinker server is left")) };
        let (http, wanted) = (&self.http, &self.wanted);
        if let Some(session) = &self.session {
            // A server that was started anew, or gave the session up, knows no model of it.
            let body = json!({"type": "get_info", "model_id": session.policy});
            match wait(runtime, cancel, alive(http, session, &body)) {
                Ok(()) => return Ok(false),
                Err(error) if cancel() => return Err(error),
                Err(error) => tracing::warn!(%error, "the policy on the Tinker server is made anew"),
            }
            self.session = None;
        }
        let handle = runtime.handle().clone();
        self.session = Some(wait(runtime, cancel, begin(http, wanted, at, &handle))?);
        Ok(true)
    }

    fn give_up(&mut self) {
        let Some(session) = self.session.take() else { return };
        let Some(runtime) = &self.runtime else { return };
        let models = session.reference.iter().chain([&session.policy]);
        let bodies: Vec<Value> = models.map(|model| json!({"type": "unload_model", "model_id": model})).collect();
        let http = &self.http;
        let farewell = async {
            for body in &bodies {
                // The server lets it go by itself, if later.
                let _ = http.post("unload_model", body, SMALL, Repeat::Never).await;
            }
        };
        let _ = runtime.block_on(async { tokio::time::timeout(FAREWELL, farewell).await });
    }

    fn logprobs(&mut self, sequences: &[Sequence], cancel: Cancel) -> Result<Vec<Vec<f32>>> {
        self.with(cancel, async |http, _, session| forward(http, &session.policy, sequences).await)
    }

    fn reference(&mut self, sequences: &[Sequence], cancel: Cancel) -> Result<Vec<Vec<f32>>> {
        self.with(cancel, async |http, wanted, session| {
            let model = match &session.reference {
                Some(model) => model.clone(),
                None => {
                    let model = create(http, &session.id, &session.base, 1, LEAST_RANK, wanted).await?;
                    session.reference.insert(model).clone()
                }
            };
            forward(http, &model, sequences).await
        })
    }

    fn step(&mut self, step: &Step, cancel: Cancel) -> Result<Option<f64>> {
        self.with(cancel, async |http, wanted, session| {
            let body = wire::forward_backward(&session.policy, step, wanted.longest);
            http.result("forward_backward", &body, reply_bytes(&step.sequences), Repeat::Never).await?;
            let body = wire::optim_step(&session.policy, step);
            let done = http.result("optim_step", &body, SMALL, Repeat::Never).await?;
            Ok(wire::grad_norm(&done))
        })
    }

    fn keep(&mut self, cancel: Cancel) -> Result<String> {
        self.with(cancel, async |http, _, session| {
            let body = json!({"type": "save_weights", "model_id": session.policy, "path": session.next_name()});
            wire::text(&http.result("save_weights", &body, SMALL, Repeat::Never).await?, "path")
        })
    }

    fn adapter(&mut self, files: [&str; 2], most: u64, cancel: Cancel) -> Result<[Vec<u8>; 2]> {
        let archive = self.with(cancel, async |http, _, session| {
            let (model, name) = (&session.policy.clone(), session.next_name());
            let body = json!({"type": "save_weights_for_sampler", "model_id": model, "path": name});
            http.result("save_weights_for_sampler", &body, SMALL, Repeat::Never).await?;
            let path = format!("training_runs/{model}/checkpoints/{name}/archive");
            http.file(&path, usize::try_from(most).unwrap_or(usize::MAX)).await
        })?;
        archive::unpack(&archive, files, most)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.give_up();
        // Waits for nothing, as a thread of another runtime must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    fn next_name(&mut self) -> String {
        self.saved += 1;
        format!("apa-{}", self.saved)
    }
}

/// Whether the session and its model are still there.
async fn alive(http: &Http, session: &Session, about: &Value) -> Result<()> {
    let beat = json!({"type": "session_heartbeat", "session_id": session.id});
    http.post("session_heartbeat", &beat, SMALL, Repeat::Freely).await?;
    let info = http.post("get_info", about, SMALL, Repeat::Freely).await?;
    match info.get("status").and_then(Value::as_str) {
        Some(status @ ("unloaded" | "unloading")) => Err(Error::train(format!("the policy there is {status}"))),
        _ => Ok(()),
    }
}

/// A session with a policy in it, of a checkpoint or the initial model.
async fn begin(http: &Http, wanted: &Wanted, at: Option<&str>, handle: &tokio::runtime::Handle) -> Result<Session> {
    let base = match &wanted.base {
        Some(base) => base.clone(),
        None => wire::only_base(&http.get("get_server_capabilities", SMALL).await?)?,
    };
    let id = wire::text(&http.post("create_session", &wire::session(), SMALL, Repeat::Freely).await?, "session_id")?;
    let policy = create(http, &id, &base, 0, wanted.rank, wanted).await?;
    let heart = handle.spawn(beat(http.clone(), json!({"type": "session_heartbeat", "session_id": id})));
    let session = Session { id, base, policy, reference: None, saved: 0, heart };
    if let Some(path) = at {
        let body = json!({"type": "load_weights", "model_id": session.policy, "path": path, "optimizer": true});
        let loaded = http.result("load_weights", &body, SMALL, Repeat::Freely).await;
        loaded.map_err(|e| e.context(format!("the checkpoint {path:.200} that training goes on from")))?;
    }
    tracing::info!(session = session.id, model = session.policy, from = at, "a policy is made on the Tinker server");
    Ok(session)
}

/// Says for ever that a session lives.
async fn beat(http: Http, body: Value) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        if let Err(error) = http.post("session_heartbeat", &body, SMALL, Repeat::Freely).await {
            tracing::debug!(%error, "no heartbeat reaches the Tinker server");
        }
    }
}

/// A model that is made, by its id, which becomes part of addresses.
async fn create(http: &Http, session: &str, base: &str, number: u64, rank: u32, wanted: &Wanted) -> Result<String> {
    let body = wire::model(session, number, base, rank, wanted);
    let model = wire::text(&http.result("create_model", &body, SMALL, Repeat::Freely).await?, "model_id")?;
    let plain = model.chars().all(|c| c.is_ascii_alphanumeric() || "-_:".contains(c));
    match plain && !model.is_empty() {
        true => Ok(model),
        false => {
            Err(Error::train(format!("the Tinker server calls a model {model:.60?}, expected letters and digits")))
        }
    }
}

async fn forward(http: &Http, model: &str, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let body = wire::forward(model, sequences);
    let done = http.result("forward", &body, reply_bytes(sequences), Repeat::Freely).await?;
    wire::logprobs(&done, sequences)
}

/// The most that a reply about these sequences may take.
fn reply_bytes(sequences: &[Sequence]) -> usize {
    SMALL + TOKEN_BYTES * sequences.iter().map(|s| s.prompt.len() + s.response.len()).sum::<usize>()
}
