//! Embeds texts on a thread of its own, which starts with the first request and gives way to answers. Never decodes an
//! answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::error::{Error, Result};
use crate::llama::{Embedder, Model, give_way_to_decoding};
use crate::lock::lock;
use crate::types::TokenId;

/// Longest text, in tokens: all its hidden states are computed at once.
const ROOM: u32 = 2048;
/// Requests that may wait.
const WAITING: usize = 16;

type Reply = Sender<Result<Vec<Vec<f32>>>>;

struct Work {
    texts: Vec<Vec<TokenId>>,
    /// The client has left.
    abandoned: Arc<AtomicBool>,
    reply: Reply,
}

/// The thread, started on first use.
#[derive(Default)]
pub(super) struct Embeddings {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    closed: bool,
    /// Stops the thread after its current text.
    stopping: Arc<AtomicBool>,
}

impl Embeddings {
    /// One embedding per text. Blocks until they are done or the request is `abandoned`.
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
            return Err(Error::arg(format!("input[{place}] has {tokens} tokens, expected 1 to {room}")));
        }
        let (reply, answer) = bounded(1);
        match self.sender(model, room)?.try_send(Work { texts, abandoned, reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Error::busy(format!("{WAITING} requests are waiting already"))),
            Err(TrySendError::Disconnected(_)) => return Err(closed()),
        }
        answer.recv().map_err(|_| closed())?
    }

    fn sender(&self, model: &Arc<Model>, room: u32) -> Result<Sender<Work>> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(closed());
        }
        // One that panicked is followed by another.
        let lives = state.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if let Some(work) = state.work.as_ref().filter(|_| lives) {
            return Ok(work.clone());
        }
        let mut embedder = Embedder::new(model, room)?;
        let (work, waiting): (_, Receiver<Work>) = bounded(WAITING);
        let stopping = state.stopping.clone();
        let body = move || {
            give_way_to_decoding();
            for Work { texts, abandoned, reply } in waiting {
                let one = |text: &Vec<TokenId>| {
                    let given_up = abandoned.load(Ordering::Relaxed) || stopping.load(Ordering::Relaxed);
                    if given_up { Err(closed()) } else { embedder.embed(text) }
                };
                // The client may have left.
                let _ = reply.send(texts.iter().map(one).collect());
            }
        };
        state.thread = Some(std::thread::Builder::new().name("apa-embedder".into()).spawn(body)?);
        state.work = Some(work.clone());
        Ok(work)
    }

    /// Stops the thread after its current text. Idempotent.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.closed = true;
            state.stopping.store(true, Ordering::Relaxed);
            state.work = None;
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
