//! A running generation as an async stream. Holds no text: dropping it drops and so cancels the generation.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::Stream;
use futures_util::task::AtomicWaker;

use crate::engine::{Event, GenerationStream, Next};
use crate::error::Result;
use crate::types::TokenLogprob;

/// The events of one generation; ends after `Done` or the first error.
pub(super) struct Events {
    generation: Option<GenerationStream>,
    waker: Arc<AtomicWaker>,
    /// Number of log-probabilities returned so far.
    told: usize,
}

/// An event.
pub(super) struct Piece {
    pub(super) event: Event,
    /// The log-probabilities of the tokens since the one before.
    pub(super) logprobs: Vec<TokenLogprob>,
    /// The stop string that ended the answer.
    pub(super) stop: Option<String>,
}

impl Events {
    pub(super) fn new(generation: GenerationStream) -> Self {
        let waker = Arc::new(AtomicWaker::new());
        let hook = waker.clone();
        generation.set_wake(Arc::new(move || hook.wake()));
        Self { generation: Some(generation), waker, told: 0 }
    }
}

impl Stream for Events {
    type Item = Result<Piece>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Registered before checking, so that an event in between isn't missed.
        self.waker.register(context.waker());
        let Some(generation) = &self.generation else { return Poll::Ready(None) };
        let item = match generation.next(Some(Duration::ZERO)) {
            Ok(Next::Timeout) => return Poll::Pending,
            Ok(Next::Finished) => None,
            Ok(Next::Event(event)) => {
                Some(Ok(Piece { event, logprobs: generation.logprobs(self.told), stop: generation.stopped_by() }))
            }
            Err(error) => Some(Err(error)),
        };
        match &item {
            Some(Ok(Piece { event: Event::Text(_), logprobs, .. })) => self.told += logprobs.len(),
            _ => self.generation = None,
        }
        Poll::Ready(item)
    }
}
