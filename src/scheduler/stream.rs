//! The two ends of a running generation: the scheduler sends, the client pulls. Bounded by the answer's own length, so
//! that a slow client delays nobody. Never decodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::{Generation, GenerationId, TokenLogprob};

/// An event of a running generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More text, whole codepoints.
    Text(String),
    /// The end; the generation is in the ledger.
    Done(Arc<Generation>),
}

/// The outcome of waiting for an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// An event.
    Event(Event),
    /// No event within the timeout; wait again.
    Timeout,
    /// The end was delivered before.
    Finished,
}

/// Called when an event became ready.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// State shared by both ends.
#[derive(Default)]
struct Shared {
    /// The client left or cancelled; the scheduler checks it every turn.
    cancelled: AtomicBool,
    /// The end was sent, so a closed channel is expected, whoever took the end from it.
    ended: AtomicBool,
    /// The scheduler's end was dropped; nothing will wake a hook registered later.
    gone: AtomicBool,
    wake: Mutex<Option<Wake>>,
    /// One per token, if requested; kept, since clients may read them piecewise and at the end.
    logprobs: Mutex<Vec<TokenLogprob>>,
    /// The stop string that ended the answer; set before the end is sent.
    stopped: Mutex<Option<String>>,
}

impl Shared {
    fn wake(&self) {
        let hook = lock(&self.wake).clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}

/// Creates both ends for an answer of at most `max_tokens` tokens.
pub(super) fn stream(id: GenerationId, max_tokens: u32) -> (Sink, GenerationStream) {
    // One text per token, the text held back at the end, and the end itself: a send never waits.
    let (sender, receiver) = bounded(max_tokens as usize + 2);
    let shared = Arc::new(Shared::default());
    let sink = Sink { id: id.clone(), sender: Some(sender), shared: shared.clone() };
    (sink, GenerationStream { id, receiver, shared, finished: AtomicBool::new(false), kept: Mutex::default() })
}

/// The scheduler's end. Dropped without an end, it tells the client that the engine closed.
pub struct Sink {
    id: GenerationId,
    sender: Option<Sender<Result<Event>>>,
    shared: Arc<Shared>,
}

impl Sink {
    /// The generation's id.
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// Sends text.
    pub(super) fn text(&self, text: String) {
        self.send(Ok(Event::Text(text)));
    }

    /// Records the log-probabilities of a token, before its text is sent.
    pub(super) fn logprob(&self, token: TokenLogprob) {
        lock(&self.shared.logprobs).push(token);
    }

    /// Notes the stop string that ended the answer.
    pub(super) fn stopped(&self, by: Option<String>) {
        *lock(&self.shared.stopped) = by;
    }

    /// Ends it, with the recorded generation or with an error.
    pub fn finish(self, end: Result<Arc<Generation>>) {
        self.shared.ended.store(true, Ordering::Release);
        self.send(end.map(Event::Done));
    }

    /// Whether the client has left or cancelled.
    pub(super) fn cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    fn send(&self, event: Result<Event>) {
        if let Some(sender) = &self.sender {
            // Fails only if the client is gone.
            let _ = sender.try_send(event);
            self.shared.wake();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The channel must be closed before the client is woken.
        self.sender = None;
        self.shared.gone.store(true, Ordering::Release);
        self.shared.wake();
    }
}

/// A running generation. Dropping it cancels the rest.
pub struct GenerationStream {
    id: GenerationId,
    receiver: Receiver<Result<Event>>,
    shared: Arc<Shared>,
    finished: AtomicBool,
    /// What has to stay until the answer ends.
    kept: Mutex<Option<Arc<dyn Send + Sync>>>,
}

impl GenerationStream {
    /// Holds on to something until the end was delivered, or it is dropped.
    pub(crate) fn keep(self, what: Option<Arc<dyn Send + Sync>>) -> Self {
        *lock(&self.kept) = what;
        self
    }

    fn ended(&self) -> bool {
        drop(lock(&self.kept).take());
        self.finished.swap(true, Ordering::AcqRel)
    }

    /// The id of the generation.
    pub fn id(&self) -> &GenerationId {
        &self.id
    }

    /// Waits at most `timeout` for the next event (zero polls, `None` waits without limit).
    ///
    /// # Errors
    /// `Closed` if the engine shut down, `Model` if decoding failed, `Io` if the ledger could not record it; the stream
    /// has ended then.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next> {
        if self.finished.load(Ordering::Acquire) {
            return Ok(Next::Finished);
        }
        let received = match timeout {
            Some(timeout) => self.receiver.recv_timeout(timeout),
            None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(Ok(event)) => {
                if matches!(event, Event::Done(_)) {
                    self.ended();
                }
                Ok(Next::Event(event))
            }
            Ok(Err(error)) => {
                self.ended();
                Err(error)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Next::Timeout),
            Err(RecvTimeoutError::Disconnected) => {
                // Another thread may have taken the end between the check and the wait.
                if self.ended() || self.shared.ended.load(Ordering::Acquire) {
                    return Ok(Next::Finished);
                }
                Err(Error::closed("the engine was closed while the answer was generated"))
            }
        }
    }

    /// The log-probabilities of the tokens so far, without the first `skip`. Empty unless requested; without the token
    /// that ended the answer.
    pub fn logprobs(&self, skip: usize) -> Vec<TokenLogprob> {
        let logprobs = lock(&self.shared.logprobs);
        logprobs.get(skip..).unwrap_or_default().to_vec()
    }

    /// The stop string that ended the answer, once it has ended.
    pub fn stopped_by(&self) -> Option<String> {
        lock(&self.shared.stopped).clone()
    }

    /// Cancels it; the end still comes, with the text so far. From any thread, at any time.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }

    /// Registers a hook that the engine's threads call whenever an event is ready, and at once if one already is. For
    /// event loops: the hook must be quick and must not call the engine.
    pub fn set_wake(&self, hook: Wake) {
        *lock(&self.shared.wake) = Some(hook.clone());
        if !self.receiver.is_empty() || self.shared.gone.load(Ordering::Acquire) {
            hook();
        }
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Sink, GenerationStream) {
        stream(GenerationId("gen-test".into()), 4)
    }

    #[test]
    fn a_sink_that_is_dropped_tells_the_client_that_the_engine_closed() {
        let (sink, stream) = ends();
        sink.text("a".into());
        drop(sink);
        assert_eq!(stream.next(None).unwrap(), Next::Event(Event::Text("a".into())));
        assert_eq!(stream.next(None).unwrap_err().code(), crate::Code::Closed);
        assert_eq!(stream.next(None).unwrap(), Next::Finished);
    }

    #[test]
    fn a_wake_hook_set_after_the_engine_closed_is_called() {
        let (sink, stream) = ends();
        drop(sink);
        let called = Arc::new(AtomicBool::new(false));
        let seen = called.clone();
        stream.set_wake(Arc::new(move || seen.store(true, Ordering::Relaxed)));
        assert!(called.load(Ordering::Relaxed));
    }

    #[test]
    fn a_poll_without_an_event_times_out() {
        let (_sink, stream) = ends();
        assert_eq!(stream.next(Some(Duration::ZERO)).unwrap(), Next::Timeout);
    }

    #[test]
    fn a_dropped_stream_is_a_cancelled_one() {
        let (sink, stream) = ends();
        assert!(!sink.cancelled());
        drop(stream);
        assert!(sink.cancelled());
        sink.text("to nobody".into());
    }

    #[test]
    fn a_wake_hook_set_late_is_called_for_what_is_ready() {
        let (sink, stream) = ends();
        sink.text("a".into());
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let seen = calls.clone();
        stream.set_wake(Arc::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        sink.text("b".into());
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        drop(sink);
        assert_eq!(calls.load(Ordering::Relaxed), 3);
    }
}
