//! Constrains answers to a JSON schema or a grammar: compiles it, and computes before each token which ones may follow.
//! Never sees logits or chooses a token.
//!
//! A client's schema can make both steps slow, so neither runs on a thread that others wait for. Each compilation has a
//! thread of its own, a few at a time; a few workers compute the allowed tokens while the last token is being decoded.

mod formats;
mod gbnf;
mod lark;
mod pattern;
mod references;
mod schema;
mod values;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::durations::{Durations, Meter};
use crate::error::{Error, Result};
use crate::lock::{lock, unpoisoned};
use crate::types::{Format, TokenId};

/// Most compilations at a time.
const COMPILERS: usize = 2;
/// Time limit of a compilation, and of the wait for its turn.
const COMPILE: Duration = Duration::from_secs(5);
/// Stack of a compiler's thread, which recurses into the nesting and the references of a schema.
const STACK: usize = 64 << 20;
/// Most answers waiting for their next tokens.
const STEPS: usize = 4096;
/// Longest grammar or schema, in bytes.
const FORMAT_BYTES: usize = 128 << 10;
/// Longest token, in bytes, that a constrained answer may use.
const TOKEN_BYTES: usize = 1000;
/// Largest vocabulary, in bytes.
const VOCABULARY_BYTES: usize = 3 << 20;

/// Limits on the work per answer: llguidance's defaults, raised for schemas with hundreds of optional properties, and
/// lowered for memory.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 20_000,
        step_max_items: 100_000,
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Constrains answers over the tokens of one vocabulary.
pub struct Guides {
    factory: Arc<ParserFactory>,
    steps: Sender<Step>,
    compilers: Arc<Permits>,
    masks: Arc<Meter>,
}

impl Guides {
    /// Takes the bytes of each token, and the tokens that end an answer. Tokens that text must not contain, above all
    /// control tokens, begin with 0xff.
    ///
    /// # Errors
    /// `Unsupported` for a vocabulary that is too large, `NoMem` if no thread can be started.
    pub fn new(tokens: Vec<Vec<u8>>, ends: &[TokenId]) -> Result<Guides> {
        Self::with_step(tokens, ends, Step::make)
    }

    /// The same, with what the workers do with a step.
    fn with_step(mut tokens: Vec<Vec<u8>>, ends: &[TokenId], make: fn(Step, &Meter)) -> Result<Guides> {
        tokens.iter_mut().filter(|bytes| bytes.len() > TOKEN_BYTES).for_each(Vec::clear);
        let size: usize = tokens.iter().map(Vec::len).sum();
        if size > VOCABULARY_BYTES {
            return Err(Error::unsupported(format!(
                "the model's tokens have {size} bytes, answers can be held to a format with at most {VOCABULARY_BYTES}"
            )));
        }
        let end = ends.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(tokens.len() as u32, end), &tokens);
        let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) };
        // Answers need not use the tokenizer's own segmentation: the model chooses.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|e| Error::unsupported(format!("the model's tokens: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let (steps, work) = bounded(STEPS);
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, 4);
        let masks = Arc::new(Meter::default());
        for _ in 0..workers {
            let (work, masks): (Receiver<Step>, _) = (work.clone(), masks.clone());
            // It ends when the last sender is gone.
            // A step that panics takes its answer with it, and no other.
            let make = move |step: Step| drop(catch_unwind(AssertUnwindSafe(|| make(step, &masks))));
            let body = move || work.iter().for_each(make);
            spawn("apa-guide", 8 << 20, body)?;
        }
        Ok(Guides { factory: Arc::new(factory), steps, compilers: Arc::new(Permits::default()), masks })
    }

    /// The times that masks took so far, from the token before to the tokens that may follow.
    pub fn mask_times(&self) -> Durations {
        self.masks.read()
    }

    /// Creates a guide for the beginning of an answer. Usually takes a millisecond but may take longer, so not for a
    /// thread that others wait for. `token` returns the id of a text that is a single token.
    ///
    /// # Errors
    /// `Arg` with what is invalid or unsupported in the schema or grammar; `Busy` if too many others are being
    /// compiled.
    pub fn guide(&self, format: &Format, token: &dyn Fn(&str) -> Option<TokenId>) -> Result<Guide> {
        let grammar = match format {
            Format::JsonSchema(schema) => TopLevelGrammar::from_json_schema(schema::prepare(schema)?),
            Format::Grammar(text) => TopLevelGrammar::from_lark(gbnf::translate(text, token)?),
        };
        let what = match format {
            Format::JsonSchema(_) => "the JSON schema",
            Format::Grammar(_) => "the grammar",
        };
        let permit = Permits::take(&self.compilers)?;
        let (reply, answer) = bounded(1);
        let factory = self.factory.clone();
        let compile = move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar));
            let mask = matcher.compute_mask_or_eos().map_err(|e| e.to_string());
            let error = matcher.get_error();
            drop(reply.send(match (error, mask) {
                (Some(error), _) | (None, Err(error)) => Err(error),
                (None, Ok(mask)) => Ok((matcher, mask)),
            }));
            drop(permit);
        };
        spawn("apa-compile", STACK, compile)?;
        match answer.recv_timeout(COMPILE) {
            Ok(Ok((matcher, mask))) => {
                Ok(Guide { state: State::Ready(Box::new(matcher), Mask(mask)), steps: self.steps.clone() })
            }
            Ok(Err(error)) if is_panic(&error) => Err(Error::panic(format!("a bug kept {what} from being compiled"))),
            Ok(Err(error)) => Err(Error::arg(format!("{what} can't be used: {}", refusal(&error)))),
            Err(RecvTimeoutError::Timeout) => Err(Error::arg(format!(
                "{what} is too complex: compiling it took more than {} seconds",
                COMPILE.as_secs()
            ))),
            Err(_) => Err(Error::panic(format!("a bug kept {what} from being compiled"))),
        }
    }
}

fn spawn(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(body);
    thread.map(drop).map_err(|e| Error::nomem(format!("can't start the thread {name}: {e}")))
}

/// Whether a message of llguidance is that of a panic, which it catches itself.
fn is_panic(error: &str) -> bool {
    error.contains("panic: ")
}

/// The compiler's message as one sentence.
fn refusal(error: &str) -> String {
    if error.contains("oneOf constraints are not supported") {
        return "oneOf is supported where its alternatives exclude each other (by type, or by a required property that \
                is another const in each), expected that or anyOf"
            .into();
    }
    if error.contains("NoExtensionBias") {
        return "it allows none of the model's tokens, as where a rule or a $ref leads to nothing but itself".into();
    }
    let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().take(300).collect()
}

/// Limits the number of simultaneous compilations.
#[derive(Default)]
struct Permits {
    taken: Mutex<usize>,
    left: Condvar,
}

struct Permit(Arc<Permits>);

impl Permits {
    fn take(permits: &Arc<Permits>) -> Result<Permit> {
        let taken = lock(&permits.taken);
        let wait = permits.left.wait_timeout_while(taken, COMPILE, |taken| *taken >= COMPILERS);
        let (mut taken, _) = unpoisoned(wait);
        if *taken >= COMPILERS {
            return Err(Error::busy("too many schemas and grammars are being compiled"));
        }
        *taken += 1;
        Ok(Permit(permits.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.left.notify_one();
    }
}

/// The set of allowed tokens.
pub struct Mask(SimpleVob);

impl Mask {
    /// The allowed tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.0.iter()
    }
}

/// The state of one answer in its format.
pub struct Guide {
    state: State,
    steps: Sender<Step>,
}

enum State {
    Ready(Box<Matcher>, Mask),
    /// A worker holds it.
    Away(Receiver<Result<(Box<Matcher>, Mask)>>),
    Failed(Error),
}

/// A token that continued an answer.
struct Step {
    matcher: Box<Matcher>,
    token: TokenId,
    reply: Sender<Result<(Box<Matcher>, Mask)>>,
}

impl Step {
    fn make(mut self, masks: &Meter) {
        let begun = Instant::now();
        let mask = self.matcher.consume_token(self.token).and_then(|()| self.matcher.compute_mask_or_eos());
        masks.add(begun.elapsed());
        let result = match mask {
            Ok(mask) => Ok((self.matcher, Mask(mask))),
            Err(_) => Err(ended(self.matcher.stop_reason(), self.matcher.get_error())),
        };
        // If the answer ended, nobody waits for this.
        drop(self.reply.send(result));
    }
}

/// The error for an answer that can't continue.
fn ended(reason: StopReason, error: Option<String>) -> Error {
    let error = error.unwrap_or_default();
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

impl Guide {
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
        let State::Away(reply) = &self.state else { return };
        match reply.recv_timeout(limit) {
            Ok(Ok((matcher, mask))) => self.state = State::Ready(matcher, mask),
            Ok(Err(error)) => self.state = State::Failed(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                self.state = State::Failed(panicked());
            }
        }
    }

    /// Waits for the tokens that may follow; `None` if none may.
    fn following(&mut self) -> Option<Vec<TokenId>> {
        self.look(COMPILE);
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
        if self.steps.try_send(Step { matcher, token, reply }).is_ok() {
            self.state = State::Away(answer);
        }
    }
}

#[cfg(test)]
mod tests;
