//! Calls the application's reward function for each answer, on a thread of its own. Never scores itself.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::hook::{Slot, UserData};
use crate::Engine;
use crate::engine::{Feed, News, Topic};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::{GenerationId, NewFeedback, Signal};

/// `apa_reward_fn`, when it is not NULL.
pub(super) type Function = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *mut f64) -> i32;

/// The function of an engine, and the thread that calls it.
#[derive(Default)]
pub(super) struct Scorer(Mutex<Option<Running>>);

struct Running {
    feed: Arc<Feed>,
    slot: Arc<Slot<Function>>,
    thread: JoinHandle<()>,
}

impl Scorer {
    /// Calls `function` for each answer from now on, instead of the earlier one.
    pub(super) fn start(&self, engine: &Engine, function: Function, data: UserData) -> Result<()> {
        let mut running = lock(&self.0);
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

    /// Removes the function, which is not running when this returns.
    pub(super) fn stop(&self) {
        end(lock(&self.0).take());
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

/// Records a reward as an anonymous rating.
pub(super) fn put(engine: &Engine, generation_id: GenerationId, reward: f64) -> Result<()> {
    let signal = Signal::Rating(reward);
    engine.feedback(NewFeedback { generation_id, signal, user: None, comment: None }).map(drop)
}
