//! Embeds texts on a thread of its own, which starts with the first request and gives way to answers. Never decodes an
//! answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, after, bounded, never, select};

use super::alerts::{AlertKind, Alerts};
use crate::error::{Error, Result};
use crate::llama::{Embedder, Model, give_way_to_decoding};
use crate::lock::lock;
use crate::scheduler::took_too_long;
use crate::types::TokenId;

/// Longest text, in tokens: all its hidden states are computed at once.
const ROOM: u32 = 2048;
/// Requests that may wait.
const WAITING: usize = 16;

type Reply = Sender<Result<Vec<Vec<f32>>>>;
/// Embeds one text.
type Embed = Box<dyn FnMut(&[TokenId]) -> Result<Vec<f32>> + Send>;

struct Work {
    texts: Vec<Vec<TokenId>>,
    /// The client has left.
    abandoned: Arc<AtomicBool>,
    reply: Reply,
}

/// The thread, started on first use.
pub(super) struct Embeddings {
    state: Mutex<State>,
    alerts: Arc<Alerts>,
    /// Longest time of a request.
    patience: Option<Duration>,
}

/// The way to the thread.
#[derive(Clone)]
struct Lane {
    work: Sender<Work>,
    /// Fails once the thread has ended; work left in its channel is never answered.
    ended: Receiver<()>,
}

#[derive(Default)]
struct State {
    lane: Option<Lane>,
    thread: Option<JoinHandle<()>>,
    closed: bool,
    /// Stops the thread after its current text.
    stopping: Arc<AtomicBool>,
}

impl Embeddings {
    pub(super) fn new(alerts: Arc<Alerts>, patience: Option<Duration>) -> Self {
        Self { state: Mutex::default(), alerts, patience }
    }

    /// One embedding per text. Blocks until they are done, the request is `abandoned`, or its time is over.
    pub(super) fn embed(
        &self,
        model: &Arc<Model>,
        context: u32,
        texts: Vec<Vec<TokenId>>,
        abandoned: Arc<AtomicBool>,
    ) -> Result<Vec<Vec<f32>>> {
        let room = context.min(ROOM);
        if let Some(place) = texts.iter().position(|t| t.is_empty() || t.len() > room as usize) {
            let tokens = texts[place].len();
            let error = if tokens == 0 { Error::arg } else { Error::context_length };
            return Err(error(format!("input[{place}] has {tokens} tokens, expected 1 to {room}")));
        }
        let known = model.n_vocab();
        let unknown = |text: &Vec<TokenId>| text.iter().copied().find(|token| *token as usize >= known);
        if let Some((place, token)) = texts.iter().enumerate().find_map(|(i, text)| Some((i, unknown(text)?))) {
            return Err(Error::arg(format!(
                "input[{place}] has token {token}, which is outside the vocabulary of {known}"
            )));
        }
        self.embed_with(texts, abandoned, || {
            let mut embedder = Embedder::new(model, room)?;
            Ok(Box::new(move |text: &[TokenId]| embedder.embed(text)))
        })
    }

    /// The same, with `make` for what embeds where no thread has it yet.
    fn embed_with(
        &self,
        texts: Vec<Vec<TokenId>>,
        abandoned: Arc<AtomicBool>,
        make: impl FnOnce() -> Result<Embed>,
    ) -> Result<Vec<Vec<f32>>> {
        let (reply, answer) = bounded(1);
        let Lane { work, ended } = self.lane(make)?;
        let over = self.patience.map_or_else(never, after);
        match work.try_send(Work { texts, abandoned: abandoned.clone(), reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Error::busy(format!("{WAITING} requests are waiting already"))),
            Err(TrySendError::Disconnected(_)) => return Err(self.unanswered()),
        }
        select! {
            recv(answer) -> answer => answer.map_err(|_| self.unanswered())?,
            recv(ended) -> _ => answer.try_recv().map_err(|_| self.unanswered())?,
            recv(over) -> _ => {
                abandoned.store(true, Ordering::Relaxed);
                Err(took_too_long(self.patience.unwrap_or_default()))
            }
        }
    }

    /// Why the thread left work undone.
    fn unanswered(&self) -> Error {
        if lock(&self.state).closed { closed() } else { panicked() }
    }

    fn lane(&self, make: impl FnOnce() -> Result<Embed>) -> Result<Lane> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(closed());
        }
        // One that panicked is followed by another.
        let lives = state.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if let Some(lane) = state.lane.as_ref().filter(|_| lives) {
            return Ok(lane.clone());
        }
        let mut embed = make()?;
        let (work, waiting): (_, Receiver<Work>) = bounded(WAITING);
        let (running, ended) = bounded(0);
        let (stopping, alerts) = (state.stopping.clone(), self.alerts.clone());
        let body = move || {
            let _running = running;
            give_way_to_decoding();
            for Work { texts, abandoned, reply } in waiting {
                let one = |text: &Vec<TokenId>| {
                    let given_up = abandoned.load(Ordering::Relaxed) || stopping.load(Ordering::Relaxed);
                    if given_up { Err(closed()) } else { embed(text) }
                };
                let done = catch_unwind(AssertUnwindSafe(|| texts.iter().map(one).collect::<Result<Vec<_>>>()));
                let Ok(embedded) = done else {
                    // What embeds may be half way through a change. Whoever waits is told by its end.
                    alerts.panicked(AlertKind::EmbedderPanicked, panicked().message());
                    return;
                };
                if embedded.is_ok() {
                    alerts.clear(AlertKind::EmbedderPanicked);
                }
                // The client may have left.
                let _ = reply.send(embedded);
            }
        };
        state.thread = Some(std::thread::Builder::new().name("apa-embedder".into()).spawn(body)?);
        let lane = Lane { work, ended };
        state.lane = Some(lane.clone());
        Ok(lane)
    }

    /// Stops the thread after its current text. Idempotent.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.stopping.store(true, Ordering::Relaxed);
            state.lane = None;
            state.thread.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the embedder's thread panicked");
        }
    }
}

fn closed() -> Error {
    Error::closed("the engine is closed")
}

fn panicked() -> Error {
    Error::panic("a bug stopped the embedder, which starts again with the next request; the log has the details")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::engine::feed::Hub;
    use crate::error::Code;

    #[test]
    fn a_panic_of_the_embedder_ends_what_waits_with_a_clear_error_and_the_next_request_has_another() {
        let alerts = Arc::new(Alerts::new(Arc::new(Hub::default())));
        let embeddings = Arc::new(Embeddings::new(alerts.clone(), None));
        let (go, wait) = mpsc::channel::<()>();
        let bad: Embed = Box::new(move |_| {
            wait.recv().ok();
            panic!("a bug, for this test");
        });
        let mut calls = Vec::new();
        let mut first = Some(bad);
        for _ in 0..3 {
            let (embeddings, made) = (embeddings.clone(), first.take());
            let make = move || Ok(made.expect("a thread lives already"));
            calls.push(std::thread::spawn(move || embeddings.embed_with(vec![vec![1]], Arc::default(), make)));
            std::thread::sleep(Duration::from_millis(50));
        }
        go.send(()).unwrap();
        for call in calls {
            let error = call.join().unwrap().unwrap_err();
            assert_eq!(error.code(), Code::Panic, "{error}");
            assert!(error.message().contains("a bug stopped the embedder"), "{error}");
        }
        let raised: Vec<AlertKind> = alerts.list().iter().map(|alert| alert.kind).collect();
        assert_eq!((raised, alerts.panics(AlertKind::EmbedderPanicked)), (vec![AlertKind::EmbedderPanicked], 1));
        let good = || Ok(Box::new(|_: &[TokenId]| Ok(vec![1.0f32])) as Embed);
        // The thread that panicked may not have ended yet.
        let again = |_| embeddings.embed_with(vec![vec![1]], Arc::default(), good).ok();
        let embedded = (0..100).find_map(|i| {
            again(i).or_else(|| {
                std::thread::sleep(Duration::from_millis(20));
                None
            })
        });
        assert_eq!(embedded, Some(vec![vec![1.0]]));
        assert!(alerts.list().is_empty(), "it is over once a text is embedded");
        embeddings.stop();
        let error = embeddings.embed_with(vec![vec![1]], Arc::default(), good).unwrap_err();
        assert_eq!(error.code(), Code::Closed, "{error}");
    }

    #[test]
    fn a_request_that_takes_longer_than_its_limit_is_ended_and_its_other_texts_are_left() {
        let alerts = Arc::new(Alerts::new(Arc::new(Hub::default())));
        let embeddings = Embeddings::new(alerts, Some(Duration::from_millis(50)));
        let (go, wait) = bounded::<()>(0);
        let embedded = Arc::new(AtomicUsize::new(0));
        let counted = embedded.clone();
        let slow = move || {
            Ok(Box::new(move |_: &[TokenId]| {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = wait.recv();
                Ok(vec![1.0f32])
            }) as Embed)
        };
        let error = embeddings.embed_with(vec![vec![1]; 8], Arc::default(), slow).unwrap_err();
        assert!(error.message().contains("serve.request_seconds"), "{error}");
        drop(go);
        embeddings.stop();
        assert_eq!(embedded.load(Ordering::Relaxed), 1);
    }
}
