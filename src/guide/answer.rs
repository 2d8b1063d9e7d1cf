//! The state of an answer in its format: which tokens may follow, found out by workers one token at a time, each
//! answer in its turn. Never compiles a format.
//!
//! An answer has an allowance of time. One that has spent it waits with others of its kind in a queue of its own, so
//! that a format that is slow to follow holds up no answer with a quick one.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use llguidance::api::StopReason;
use llguidance::{CancellationHandle, Matcher};
use toktrie::SimpleVob;

use super::pattern::UNWRITTEN;
use crate::durations::Meter;
use crate::error::{Error, Result};
use crate::types::TokenId;

/// Longest time for the tokens that may follow one token; the answer ends there.
pub(super) const STEP: Duration = Duration::from_secs(1);
/// What an answer's allowance grows by with each token.
const SHARE: Duration = Duration::from_millis(5);
/// Largest allowance.
const ALLOWANCE: Duration = Duration::from_millis(50);
/// Longest wait for a token of a whole answer.
const WAIT: Duration = Duration::from_secs(5);

/// Whether a message of llguidance is that of a panic, which it catches itself.
pub(super) fn is_panic(error: &str) -> bool {
    error.contains("panic: ")
}

/// The compiler's message as one sentence that names the keyword.
pub(super) fn refusal(error: &str) -> String {
    if error.contains("oneOf constraints are not supported") {
        return "oneOf is supported where its alternatives exclude each other (by type, or by a required property that \
                is another const in each), expected that or anyOf"
            .into();
    }
    if error.contains("NoExtensionBias") {
        return "it allows none of the model's tokens, as where a rule or a $ref leads to nothing but itself".into();
    }
    if error.contains("Unable to determine if regex is empty") {
        return "pattern is too complex beside the other keywords for the same string (format, minLength, maxLength, \
                another pattern by allOf or $ref): it can't be told whether any text satisfies all"
            .into();
    }
    if TOO_LARGE.iter().any(|part| error.contains(part)) {
        return "it is too large or too complex, expected fewer or shorter rules, patterns and alternatives".into();
    }
    if error.contains("too many expressions constructed") || error.contains("too many states") {
        return "following pattern, format and maxLength (or, of a grammar, its rules without recursion) takes too much \
                work"
            .into();
    }
    if error.contains("patternProperty regexes") {
        // As the client wrote them, but for escapes.
        let line: String = error.replace(UNWRITTEN, "").chars().take(300).collect();
        return format!("patternProperties has patterns that may match the same key: {line}");
    }
    if let Some((_, unsatisfied)) = error.split_once("Unsatisfiable schema: ") {
        // What follows of a text is a regular expression of the translation's.
        let what = if unsatisfied.starts_with("Regex is empty") {
            "no text has its pattern, format, minLength and maxLength (also by allOf or $ref)"
        } else {
            unsatisfied.lines().next().unwrap_or_default()
        };
        return format!("no value satisfies it: {}", what.chars().take(300).collect::<String>());
    }
    let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    untranslated(line).chars().take(300).collect()
}

/// What the compiler says where something passes one of its limits, which no client knows or can set.
const TOO_LARGE: [&str; 5] = [
    "lexer precomputation failed",
    "(grammar) too big",
    "(number of symbols) too big",
    "fuel exhausted",
    "Too many items",
];

/// A message without the place that it begins with, as in `at 18(6): `: a line of the translation, which no client saw.
fn untranslated(line: &str) -> &str {
    let place = line.strip_prefix("at ").and_then(|rest| rest.split_once(": "));
    match place {
        Some((place, rest)) if place.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'(' | b')')) => rest,
        _ => line,
    }
}

/// The error for an answer that can't continue.
pub(super) fn ended(reason: StopReason, error: Option<String>) -> Error {
    let error = error.unwrap_or_default();
    if reason == StopReason::Cancelled {
        return Error::arg(format!(
            "the format of the answer got too complex on the way: it took more than {} second to find out what may \
             follow",
            STEP.as_secs()
        ));
    }
    if reason == StopReason::NoExtensionBias || error.contains("NoExtensionBias") {
        return Error::arg("the format of the answer allows none of the model's tokens here");
    }
    if is_panic(&error) {
        return panicked();
    }
    Error::arg(format!("the format of the answer got too complex on the way: {}", refusal(&error)))
}

fn panicked() -> Error {
    Error::panic("a bug kept the answer from being held to its format")
}

/// The set of allowed tokens.
pub struct Mask(SimpleVob);

impl Mask {
    /// The allowed tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.0.iter()
    }
}

/// Where answers wait for their next tokens.
#[derive(Clone)]
pub(super) struct Queues {
    pub(super) quick: Sender<Step>,
    /// Of answers whose allowance is spent.
    pub(super) slow: Sender<Step>,
}

/// The state of one answer in its format.
pub struct Guide {
    state: State,
    queues: Queues,
    allowance: Allowance,
}

enum State {
    Ready(Box<Matcher>, Mask),
    /// A worker holds it.
    Away(Away),
    Failed(Error),
}

struct Away {
    reply: Receiver<Reply>,
    /// When a worker began with it.
    begun: Arc<OnceLock<Instant>>,
    handle: Option<CancellationHandle>,
}

/// What a worker sends back, and how long it took.
type Reply = (Result<(Box<Matcher>, Mask)>, Duration);

/// A token that continued an answer.
pub(super) struct Step {
    matcher: Box<Matcher>,
    pub(super) token: TokenId,
    begun: Arc<OnceLock<Instant>>,
    reply: Sender<Reply>,
}

impl Step {
    /// Notes that a worker begins.
    pub(super) fn begin(&self) {
        self.begun.get_or_init(Instant::now);
    }

    /// Finds out which tokens may follow.
    pub(super) fn make(mut self, masks: &Meter) {
        let begun = *self.begun.get_or_init(Instant::now);
        let mask = self.matcher.consume_token(self.token).and_then(|()| self.matcher.compute_mask_or_eos());
        let took = begun.elapsed();
        masks.add(took);
        let result = match mask {
            Ok(mask) => Ok((self.matcher, Mask(mask))),
            Err(_) => Err(ended(self.matcher.stop_reason(), self.matcher.get_error())),
        };
        // If the answer ended, nobody waits for this.
        drop(self.reply.send((result, took)));
    }
}

/// The time that an answer may take before it gives way to others. Grows by [`SHARE`] with each token.
struct Allowance {
    left: Duration,
    spent: bool,
}

impl Allowance {
    fn pay(&mut self, took: Duration) {
        let had = self.left + SHARE;
        self.spent = took > had;
        self.left = had.saturating_sub(took).min(ALLOWANCE);
    }
}

impl Guide {
    pub(super) fn new(matcher: Matcher, mask: SimpleVob, queues: Queues) -> Guide {
        let allowance = Allowance { left: ALLOWANCE, spent: false };
        Guide { state: State::Ready(Box::new(matcher), Mask(mask)), queues, allowance }
    }

    /// The allowed tokens; `None` while they are being computed.
    ///
    /// # Errors
    /// `Arg` if none is allowed, or if they take too much work to compute.
    pub fn mask(&mut self) -> Result<Option<&Mask>> {
        self.look(Duration::ZERO);
        match &self.state {
            State::Ready(_, mask) => Ok(Some(mask)),
            State::Away(_) => Ok(None),
            State::Failed(error) => Err(error.clone()),
        }
    }

    /// Waits until [`Guide::mask`] has a result, but at most `limit`.
    pub fn wait(&mut self, limit: Duration) {
        self.look(limit);
    }

    fn look(&mut self, limit: Duration) {
        let State::Away(away) = &self.state else { return };
        self.state = match away.reply.recv_timeout(limit) {
            Ok((result, took)) => {
                self.allowance.pay(took);
                match result {
                    Ok((matcher, mask)) => State::Ready(matcher, mask),
                    Err(error) => State::Failed(error),
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if away.begun.get().is_some_and(|begun| begun.elapsed() > STEP) {
                    away.cancel();
                }
                return;
            }
            Err(RecvTimeoutError::Disconnected) => State::Failed(panicked()),
        };
    }

    /// Waits for the tokens that may follow; `None` if none may.
    fn following(&mut self) -> Option<Vec<TokenId>> {
        self.look(WAIT);
        self.mask().ok().flatten().map(|mask| mask.tokens().collect())
    }

    /// Whether a whole answer has the format: each token may follow those before it, and it may end where it does. One
    /// of the tokens that `ends` may stand at its end. For an answer that was made without it.
    pub fn fits(mut self, answer: &[TokenId], ends: &dyn Fn(TokenId) -> bool) -> bool {
        let text = answer.split_last().filter(|(last, _)| ends(**last)).map_or(answer, |(_, text)| text);
        for token in text {
            if !self.following().is_some_and(|tokens| tokens.contains(token)) {
                return false;
            }
            self.accept(*token);
        }
        self.following().is_some_and(|tokens| tokens.into_iter().any(ends))
    }

    /// Continues with an allowed token.
    pub fn accept(&mut self, token: TokenId) {
        let busy = || State::Failed(Error::busy("too many answers are held to a format"));
        let State::Ready(matcher, _) = std::mem::replace(&mut self.state, busy()) else { return };
        let (reply, answer) = bounded(1);
        let begun = Arc::new(OnceLock::new());
        let handle = matcher.cancellation_handle();
        let queue = if self.allowance.spent { &self.queues.slow } else { &self.queues.quick };
        match queue.try_send(Step { matcher, token, begun: begun.clone(), reply }) {
            Ok(()) => self.state = State::Away(Away { reply: answer, begun, handle }),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

impl Away {
    fn cancel(&self) {
        if let Some(handle) = &self.handle {
            handle.cancel();
        }
    }
}

/// An answer that has ended needs no further tokens.
impl Drop for Guide {
    fn drop(&mut self) {
        if let State::Away(away) = &self.state {
            away.cancel();
        }
    }
}
