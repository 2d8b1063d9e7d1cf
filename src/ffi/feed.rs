//! `apa_feed`: events of an engine, pulled. Never reads events of a freed feed.

use std::ffi::c_void;
use std::sync::Arc;

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::generation::apa_wake_fn;
use super::guard::{guard, guard_infallible};
use super::hook::{Slot, UserData};
use super::registry::{self, handle};
use super::strings::apa_string;
use crate::engine::{Feed, Topic};
use crate::error::Result;

/// A bounded queue of events. It receives events from its opening on and keeps the newest 256: a caller that pulls too
/// slowly loses the oldest, and is told how many. Owned by the caller who opened it, and freed with `apa_feed_free`;
/// every call is safe from any thread, and threads that pull the same feed share its events.
pub struct apa_feed {
    _opaque: [u8; 0],
}

handle!(apa_feed, 6, FeedObject);

pub(super) struct FeedObject {
    feed: Arc<Feed>,
    /// Outlives the object in the engine's hands.
    wake: Arc<Slot<Wake>>,
}

type Wake = unsafe extern "C" fn(*mut c_void);

/// # Safety
/// `feed` is NULL or writable.
unsafe fn open(handle: *const apa_engine, topic: Topic, feed: *mut *mut apa_feed) -> Result<apa_status> {
    args::required("feed", feed)?;
    let object = FeedObject { feed: engine(handle)?.subscribe(topic)?, wake: Arc::new(Slot::new()) };
    // SAFETY: writable by the caller's contract.
    unsafe { args::put(feed, registry::insert(object)?) };
    Ok(apa_status::APA_OK)
}

/// Opens a feed of events about learning. Each event is a JSON object with `event`: `step_done` (`version`, `metrics`),
/// `step_dropped` (`reason`, `consumed`: a batch changed nothing), `version_published` (`version`, `parent`),
/// `version_activated` (`version`), `version_proposed` (`version`, `parent`, `reason`: it waits for a person),
/// `trial_started` (`version`, `parent`, `share` of the users), `trial_advanced` (`version`, `share`),
/// `version_refused` (`version` or null, `reason`), `version_rolled_back` (`version`, `parent`, `reason`: its ratings
/// fell), `unlearning` (`replayed`, `batches`: how far the replacement of versions is that learned from a forgotten
/// user), `unlearned` (`version`, `parent`, `reason`: they are removed), `error` (`code`, `message`), `missed`
/// (`count`: the oldest events were dropped).
///
/// Errors: `APA_ERR_BUSY` if 64 feeds are open on the engine; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_events_open(
    engine: *const apa_engine,
    feed: *mut *mut apa_feed,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe { guard(error, || open(engine, Topic::Learning, feed)) }
}

/// Opens a feed of answers to score: reward jobs. Each answer that ends normally makes one, once it is on record: a
/// JSON object with `event` `answer`, `generation_id`, `policy_version`, `prompt` (as the model saw it), `text`,
/// `finish_reason`, `completion_tokens`, `user`; or `missed` (`count`), as above. `apa_reward_put` completes a job; an
/// answer whose job is never completed has no reward.
///
/// Errors: as `apa_events_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_rewards_open(
    engine: *const apa_engine,
    feed: *mut *mut apa_feed,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe { guard(error, || open(engine, Topic::Answers, feed)) }
}

/// Waits at most `timeout_ms` milliseconds for an event; 0 polls, a negative number waits without limit.
///
/// `APA_OK`: `json` holds an event. `APA_TIMEOUT`: there was none.
///
/// Errors: `APA_ERR_CLOSED` if the engine was shut down or `feed` freed, also while waiting.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_feed_next(
    feed: *mut apa_feed,
    timeout_ms: i64,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            match registry::get(feed)?.feed.next(args::timeout(timeout_ms))? {
                Some(news) => put_json(json, &news),
                None => Ok(apa_status::APA_TIMEOUT),
            }
        })
    }
}

/// Registers `wake`, which is called with `user_data` when there is an event to pull, and at the end; as
/// `apa_gen_set_wake`.
///
/// Errors: `APA_ERR_CLOSED` if `feed` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_feed_set_wake(
    feed: *mut apa_feed,
    wake: apa_wake_fn,
    user_data: *mut c_void,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = registry::get(feed)?;
            object.wake.set(wake.map(|wake| (wake, UserData(user_data))));
            if wake.is_some() {
                let slot = object.wake.clone();
                // SAFETY: the application's function, called as the header says.
                object.feed.set_wake(Arc::new(move || slot.run(|wake, user_data| wake(user_data))));
            }
            Ok(apa_status::APA_OK)
        })
    }
}

/// Frees `feed`; another thread waiting in `apa_feed_next` gets `APA_ERR_CLOSED`. NULL and a second free are harmless.
#[unsafe(no_mangle)]
pub extern "C" fn apa_feed_free(feed: *mut apa_feed) {
    guard_infallible((), || {
        let Some(object) = registry::remove(feed) else { return };
        object.wake.set(None);
        object.feed.close();
    });
}
