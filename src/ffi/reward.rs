//! Rewards that the application gives: by hand for a job, or by a function that is called for each answer. Never scores
//! itself.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::args;
use super::engine::{apa_engine, engine};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::hook::{Slot, UserData};
use crate::Engine;
use crate::engine::{Feed, News, Topic};
use crate::error::{Error, Result};
use crate::types::{GenerationId, NewFeedback, Signal};

/// Called with each answer that ended by itself (JSON as `apa_rewards_open` has it, not NUL-terminated, valid until it
/// returns), on a thread that does nothing else, one at a time: it may take its time. 0: `*reward`, from -1 to 1, is
/// what the answer is worth. Positive: it gets none. Negative: the function failed; the event feed is told, and the
/// answer gets none. Of this library it may call only `apa_gen_cancel` and the frees, and it must not leave by an
/// exception or `longjmp`.
pub type apa_reward_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        answer_json: *const c_char,
        answer_json_len: usize,
        reward: *mut f64,
    ) -> i32,
>;

type Function = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *mut f64) -> i32;

/// The function of an engine, and the thread that calls it.
#[derive(Default)]
pub(super) struct Scorer(Mutex<Option<Running>>);

struct Running {
    feed: Arc<Feed>,
    slot: Arc<Slot<Function>>,
    thread: JoinHandle<()>,
}

impl Scorer {
    fn start(&self, engine: &Engine, function: Function, data: UserData) -> Result<()> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end(running.take());
        let (feed, slot) = (engine.subscribe(Topic::Answers)?, Arc::new(Slot::new()));
        slot.set(Some((function, data)));
        let work = {
            let (engine, feed, slot) = (engine.clone(), feed.clone(), slot.clone());
            move || score_all(&engine, &feed, &slot)
        };
        let thread = thread::Builder::new().name("apa-reward".into()).spawn(work)?;
        *running = Some(Running { feed, slot, thread });
        Ok(())
    }

    /// Takes the function back. It is not running when this returns.
    pub(super) fn stop(&self) {
        end(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn end(running: Option<Running>) {
    let Some(Running { feed, slot, thread }) = running else { return };
    feed.close();
    slot.set(None);
    if thread.join().is_err() {
        tracing::error!("the thread of the reward function panicked");
    }
}

fn score_all(engine: &Engine, feed: &Feed, slot: &Slot<Function>) {
    while let Ok(news) = feed.next(None) {
        match news {
            Some(News::Answer(answer)) => {
                let id = answer.generation_id.clone();
                if let Err(error) = score(engine, &id, &News::Answer(answer), slot) {
                    engine.report(&error.context(format!("the reward of {id}")));
                }
            }
            Some(News::Missed { count }) => {
                engine.report(&Error::busy(format!(
                    "{count} answers ended faster than they were scored, and got no reward"
                )));
            }
            _ => {}
        }
    }
}

fn score(engine: &Engine, id: &GenerationId, answer: &News, slot: &Slot<Function>) -> Result<()> {
    let json = serde_json::to_string(answer).map_err(|e| Error::io(format!("writing JSON: {e}")))?;
    let (mut code, mut reward) = (1, f64::NAN);
    // SAFETY: the application's function, called as the header says; the text and `reward` live until it returns.
    slot.run(|function, data| code = unsafe { function(data, json.as_ptr().cast(), json.len(), &raw mut reward) });
    match code {
        0 => put(engine, id.clone(), reward),
        1.. => Ok(()),
        code => Err(Error::callback(format!("the reward function returned {code}"))),
    }
}

fn put(engine: &Engine, generation_id: GenerationId, reward: f64) -> Result<()> {
    let signal = Signal::Rating(reward);
    engine.feedback(NewFeedback { generation_id, signal, user: None, comment: None }).map(drop)
}

/// Gives the answer `generation_id` its reward, from -1 to 1, as a rating by nobody in particular (`apa_feedback`
/// without `user`); it is durable on disk when this returns. The last one counts, beside people's own ratings by the
/// mean.
///
/// Errors: `APA_ERR_ARG` for an unknown answer or a reward out of range; `APA_ERR_IO` if it could not be written;
/// `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_reward_put(
    engine: *const apa_engine,
    generation_id: *const c_char,
    generation_id_len: usize,
    reward: f64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and `error` NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            let id = args::text("generation_id", generation_id, generation_id_len)?;
            put(&engine, GenerationId(id.to_owned()), reward)?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Has `reward` called, with `user_data`, for each answer from now on, and what it says recorded as by
/// `apa_reward_put`. One function an engine: it replaces the earlier one; NULL takes it back, and so does shutdown.
/// When this or the shutdown returns, the earlier one is not running and never will be.
///
/// Errors: `APA_ERR_BUSY` as `apa_rewards_open`; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_reward_set(
    engine: *const apa_engine,
    reward: apa_reward_fn,
    user_data: *mut c_void,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = self::engine(engine)?;
            match reward {
                Some(function) => object.scorer.start(&object, function, UserData(user_data))?,
                None => object.scorer.stop(),
            }
            Ok(apa_status::APA_OK)
        })
    }
}
