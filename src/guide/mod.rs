//! Constrains answers to a JSON schema or a grammar: compiles it, and computes before each token which ones may follow.
//! Never sees logits or chooses a token.
//!
//! A client's schema can make both steps slow, so neither runs on a thread that others wait for. Each compilation has a
//! thread of its own, a few at a time; a few workers compute the allowed tokens while the last token is being decoded,
//! and one more worker those of answers that take more than their share.

mod answer;
mod closed;
mod formats;
mod gbnf;
mod lark;
mod meet;
mod parsed;
mod pattern;
mod references;
mod schema;
mod values;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{CancellationHandle, Matcher, ParserFactory};
use serde_json::Value;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

pub use answer::{Guide, Mask};
use answer::{Queues, Step, is_panic, refusal};

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

/// Checks that a schema is supported where it stands inside so many others.
///
/// # Errors
/// `Arg` naming the place in the schema, the keyword, and what was expected.
pub fn check(schema: &Value, inside: usize) -> Result<()> {
    schema::convert(schema, inside).map(drop)
}

/// Constrains answers over the tokens of one vocabulary.
pub struct Guides {
    factory: Arc<ParserFactory>,
    queues: Queues,
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
        let (quick, work) = bounded(STEPS);
        let (slow, slow_work) = bounded(STEPS);
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get() / 2).clamp(1, 4);
        let masks = Arc::new(Meter::default());
        let work = std::iter::repeat_n(work, workers).chain([slow_work]);
        for work in work {
            let masks = masks.clone();
            // It ends when the last sender is gone.
            // A step that panics takes its answer with it, and no other.
            let make = move |step: Step| {
                step.begin();
                drop(catch_unwind(AssertUnwindSafe(|| make(step, &masks))));
            };
            let body = move || work.iter().for_each(make);
            spawn("apa-guide", 8 << 20, body)?;
        }
        let queues = Queues { quick, slow };
        Ok(Guides { factory: Arc::new(factory), queues, compilers: Arc::new(Permits::default()), masks })
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
        let late = Arc::new(Late::default());
        let seen = late.clone();
        let compile = move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar)).into_cancellable();
            seen.watch(matcher.cancellation_handle());
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
            Ok(Ok((matcher, mask))) => Ok(Guide::new(matcher, mask, self.queues.clone())),
            Ok(Err(error)) if is_panic(&error) => Err(Error::panic(format!("a bug kept {what} from being compiled"))),
            Ok(Err(error)) => Err(Error::arg(format!("{what} can't be used: {}", refusal(&error)))),
            Err(RecvTimeoutError::Timeout) => {
                late.cancel();
                let most = COMPILE.as_secs();
                Err(Error::arg(format!("{what} is too complex: compiling it took more than {most} seconds")))
            }
            Err(_) => Err(Error::panic(format!("a bug kept {what} from being compiled"))),
        }
    }
}

fn spawn(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(stack).spawn(body);
    thread.map(drop).map_err(|e| Error::nomem(format!("can't start the thread {name}: {e}")))
}

/// Ends a compilation that nobody waits for any more.
#[derive(Default)]
struct Late {
    cancelled: AtomicBool,
    handle: OnceLock<CancellationHandle>,
}

impl Late {
    fn watch(&self, handle: Option<CancellationHandle>) {
        let Some(handle) = handle else { return };
        let handle = self.handle.get_or_init(|| handle);
        if self.cancelled.load(Ordering::SeqCst) {
            handle.cancel();
        }
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        if let Some(handle) = self.handle.get() {
            handle.cancel();
        }
    }
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

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod tests;
