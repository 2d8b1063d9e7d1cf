//! One running request in a lane: its evaluated and sampled tokens, and how it ends. Never touches a context.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::meters::Meters;
use super::speculate::{Hope, guess};
use super::stop::StopStrings;
use super::stream::Sink;
use crate::error::Error;
use crate::guide::Guide;
use crate::llama::{Model, Sampler, TextDecoder, sampled_logprob};
use crate::types::{
    FinishReason, GenerateRequest, Generation, GenerationId, PolicyVersion, TokenId, TokenLogprob, UnixMillis,
};

/// An accepted request, waiting or running.
pub(super) struct Job {
    pub(super) id: GenerationId,
    /// The request as submitted, with `sampling.seed` set.
    pub(super) request: GenerateRequest,
    /// The sampler of this request, before its first token.
    pub(super) sampler: Sampler,
    /// The constraint on the answer, in its initial state.
    pub(super) guide: Option<Guide>,
    /// Whether the request names a seed, to get the same answer again.
    pub(super) repeatable: bool,
    /// Most tokens to generate: the requested number, as far as the context has room.
    pub(super) max_tokens: u32,
    pub(super) created: UnixMillis,
    pub(super) submitted: Instant,
    /// Tokens of later requests that were admitted before it.
    pub(super) passed: usize,
    pub(super) patience: Option<Duration>,
    pub(super) meters: Arc<Meters>,
    pub(super) sink: Sink,
}

/// The error of a request whose time limit is over.
pub(crate) fn took_too_long(limit: Duration) -> Error {
    let seconds = limit.as_secs();
    Error::time_limit(format!("the request took longer than the {seconds} seconds that serve.request_seconds allows"))
}

impl Job {
    /// The error if its time limit is over.
    pub(super) fn late(&self) -> Option<Error> {
        let patience = self.patience.filter(|patience| self.submitted.elapsed() > *patience)?;
        Some(took_too_long(patience))
    }

    /// The error if only a version may answer that `served`, on whose lane it would start, is not.
    pub(super) fn other_version(&self, served: PolicyVersion) -> Option<Error> {
        let wanted = self.request.version.filter(|wanted| self.request.exact_version && *wanted != served)?;
        Some(Error::busy(format!("version {wanted} stopped being served before it could answer, ask again")))
    }

    /// How many tokens of later requests may still overtake it: in all as many as the cache has `room` for, which
    /// bounds its wait.
    pub(super) fn may_be_passed(&self, room: usize) -> usize {
        room.saturating_sub(self.passed)
    }

    /// Cache to reserve for it, in tokens: the prompt, and as much of the answer as its `fair` share. Few answers
    /// become as long as they may.
    pub(super) fn reserve(&self, fair: usize) -> usize {
        self.request.prompt.len() + (self.max_tokens as usize).min(fair)
    }
}

/// A request in a slot of a lane.
pub(super) struct Running {
    pub(super) job: Job,
    /// Number of tokens of prompt and response in the cache.
    pub(super) evaluated: usize,
    pub(super) response: Vec<TokenId>,
    text: String,
    decoder: TextDecoder,
    stops: StopStrings,
    /// Whether a stop string ended the answer, at the end of `text`.
    cut: bool,
    /// Length of the text before each token of the response, in bytes.
    begins: Vec<usize>,
    /// Length of the text of all tokens so far, shown or held back, in bytes.
    decoded: usize,
    /// Log-probabilities of tokens whose text is held back, with its offset: a stop string may still cut them off.
    unshown: VecDeque<(usize, TokenLogprob)>,
    last_token: Option<Instant>,
    /// How well its guesses hold.
    pub(super) hope: Hope,
    /// Tokens guessed to come after the last one, in the batch with it.
    guessed: Vec<TokenId>,
    /// The row of logits to sample from once the allowed tokens are known.
    held: Option<Vec<f32>>,
}

impl Running {
    /// Starts, with the first `reused` tokens of the prompt already in the cache.
    pub(super) fn new(mut job: Job, reused: usize) -> Running {
        Running {
            stops: StopStrings::new(std::mem::take(&mut job.request.stop)),
            decoder: TextDecoder::default(),
            cut: false,
            response: Vec::new(),
            text: String::new(),
            begins: Vec::new(),
            decoded: 0,
            unshown: VecDeque::new(),
            last_token: None,
            hope: Hope::FIRST,
            guessed: Vec::new(),
            held: None,
            evaluated: reused,
            job,
        }
    }

    /// Tokens in the cache plus those reserved for it.
    pub(super) fn reserve(&self, fair: usize) -> usize {
        self.job.reserve(fair).max(self.evaluated + 1)
    }

    /// Whether the whole prompt has been evaluated.
    pub(super) fn generating(&self) -> bool {
        !self.response.is_empty()
    }

    /// The next tokens of the prompt to evaluate, at most `limit`, and whether they are the last ones.
    pub(super) fn pending(&self, limit: usize) -> (&[TokenId], bool) {
        let rest = &self.job.request.prompt[self.evaluated..];
        let n = rest.len().min(limit);
        (&rest[..n], n == rest.len())
    }

    /// Guesses at most so many of the tokens that come after the last one, in place of the guess before. What a format
    /// allows is not known ahead; and guesses change how sums are rounded, which may decide between two tokens.
    pub(super) fn guess(&mut self, most: usize) {
        let left = (self.job.max_tokens as usize).saturating_sub(self.response.len() + 1);
        let most = if self.job.guide.is_some() || self.job.repeatable { 0 } else { most.min(left) };
        self.guessed = if most == 0 { Vec::new() } else { guess([&self.job.request.prompt, &self.response], most) };
    }

    /// The last token, and those guessed to come after it.
    pub(super) fn last_and_guessed(&self) -> impl Iterator<Item = TokenId> {
        self.response.last().into_iter().chain(&self.guessed).copied()
    }

    /// Ends the guess, and returns how many tokens it had and how many of them were sampled. `from` is the length of
    /// the answer when it was made. What didn't hold must leave the cache.
    pub(super) fn settle_guess(&mut self, from: usize) -> (usize, usize) {
        let guessed = std::mem::take(&mut self.guessed);
        let held = guessed.iter().zip(&self.response[from..]).take_while(|(a, b)| a == b).count();
        if !guessed.is_empty() {
            self.hope.guessed(guessed.len(), held);
        }
        (guessed.len(), held)
    }

    /// Whether the row of logits after the guessed token `place` is one to sample from: all before were sampled so.
    pub(super) fn guess_holds(&self, from: usize, place: usize) -> bool {
        !self.is_held() && self.response.get(from..) == self.guessed.get(..place)
    }

    /// Whether it holds a row of logits, waiting for the allowed tokens.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// The guide it waits for, if it holds a row of logits whose allowed tokens aren't known yet.
    pub(super) fn held(&mut self) -> Option<&mut Guide> {
        self.held.as_ref().and(self.job.guide.as_mut())
    }

    /// Continues from the held row of logits, if the allowed tokens are known by now.
    pub(super) fn resume(&mut self, model: &Model) -> crate::Result<Option<FinishReason>> {
        let Some(logits) = self.held.take() else { return Ok(None) };
        // Checked first, to avoid copying the row again.
        match self.job.guide.as_mut().map(Guide::mask).transpose()? {
            Some(None) => {
                self.held = Some(logits);
                Ok(None)
            }
            _ => self.advance(model, &logits),
        }
    }

    /// Samples from a row of logits and sends the text. `Some` if the answer ended. If the allowed tokens aren't known
    /// yet, the row is held.
    pub(super) fn advance(&mut self, model: &Model, logits: &[f32]) -> crate::Result<Option<FinishReason>> {
        let mask = match &mut self.job.guide {
            None => None,
            Some(guide) => match guide.mask()? {
                Some(mask) => Some(mask),
                None => {
                    self.held = Some(logits.to_vec());
                    return Ok(None);
                }
            },
        };
        let token = self.job.sampler.sample(logits, mask)?;
        self.response.push(token);
        self.begins.push(self.decoded);
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(before) => self.job.meters.waited(now - before),
            None => self.job.meters.first_token.add(now - self.job.submitted),
        }
        if model.ends(token) {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(guide) = &mut self.job.guide {
            guide.accept(token);
        }
        if let Some(top) = self.job.request.logprobs {
            self.unshown.push_back((self.decoded, sampled_logprob(model, logits, token, top as usize)));
        }
        let mut bytes = Vec::new();
        model.piece(token, false, &mut bytes);
        let text = self.decoder.push(&bytes);
        self.decoded += text.len();
        let (shown, stopped) = self.stops.push(&text);
        self.show(shown);
        if stopped {
            self.cut = true;
            self.job.sink.stopped(self.stops.found());
            return Ok(Some(FinishReason::Stop));
        }
        Ok((self.response.len() >= self.job.max_tokens as usize).then_some(FinishReason::Length))
    }

    /// Ends the answer: returns its record, and the sink to notify. Also returns the cached tokens, for reuse.
    pub(super) fn finish(
        mut self,
        finish: FinishReason,
        version: PolicyVersion,
    ) -> (Arc<Generation>, Sink, Vec<TokenId>) {
        let mut cached = self.job.request.prompt.clone();
        cached.extend_from_slice(&self.response);
        cached.truncate(self.evaluated);
        if self.cut {
            // What a stop string cut off was never shown, and is not part of the answer.
            let kept = self.begins.partition_point(|begin| *begin < self.text.len());
            self.response.truncate(kept);
        } else {
            // A codepoint that was never completed is not text.
            let rest = self.stops.finish();
            self.show(rest);
            self.unshown.drain(..).for_each(|(_, logprob)| self.job.sink.logprob(logprob));
        }
        let Job { id, request: GenerateRequest { prompt, sampling, user, .. }, created, sink, .. } = self.job;
        let generation = Generation {
            id,
            policy_version: version,
            prompt,
            response: self.response,
            text: self.text,
            sampling,
            finish,
            user,
            created,
            unrecorded: false,
        };
        (Arc::new(generation), sink, cached)
    }

    fn show(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        self.text += &text;
        while self.unshown.front().is_some_and(|(begin, _)| *begin < self.text.len()) {
            if let Some((_, logprob)) = self.unshown.pop_front() {
                self.job.sink.logprob(logprob);
            }
        }
        self.job.sink.text(text);
    }
}
