//! Events for subscribers: bounded queues, pulled. Never waits for a slow subscriber, which loses the oldest events and
//! is told how many.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::lock::{lock, wait};
use crate::scheduler::Wake;
use crate::types::*;

/// Most events that a feed keeps.
const MOST_KEPT: usize = 256;
/// Most feeds of an engine.
const MOST_FEEDS: usize = 64;

/// The subject of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Versions, training steps and errors.
    Learning,
    /// Finished answers, for an application that scores them.
    Answers,
}

/// An event. Its JSON is an object whose `event` names the kind.
#[expect(clippy::large_enum_variant, reason = "one for a batch, never many")]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum News {
    /// A batch was trained on.
    StepDone {
        /// The version that the step made.
        version: PolicyVersion,
        /// The measurements of the batch.
        metrics: StepMetrics,
    },
    /// A batch changed nothing, and its ratings are used up.
    StepDropped {
        /// Why, in one sentence.
        reason: String,
        /// Ratings that were used up.
        consumed: usize,
    },
    /// A new version serves.
    VersionPublished {
        /// The new version.
        version: PolicyVersion,
        /// The version it was trained from, or replaced.
        parent: PolicyVersion,
    },
    /// An existing version serves again.
    VersionActivated {
        /// The version.
        version: PolicyVersion,
    },
    /// A candidate waits for a person's decision (`gate.mode` is propose).
    VersionProposed {
        /// The candidate.
        version: PolicyVersion,
        /// The active version.
        parent: PolicyVersion,
        /// What was found of it, in one sentence.
        reason: String,
    },
    /// A candidate is served to a share of the users from now on.
    TrialStarted {
        /// The candidate.
        version: PolicyVersion,
        /// The active version.
        parent: PolicyVersion,
        /// Share of the users.
        share: f64,
    },
    /// The candidate is served to a larger share of the users.
    TrialAdvanced {
        /// The candidate.
        version: PolicyVersion,
        /// Share of the users.
        share: f64,
    },
    /// A candidate was refused.
    VersionRefused {
        /// Its version, if it got one.
        version: Option<PolicyVersion>,
        /// The reason, in one sentence.
        reason: String,
    },
    /// A version fell below its parent, which serves again.
    VersionRolledBack {
        /// The version that was rolled back.
        version: PolicyVersion,
        /// The version that serves now.
        parent: PolicyVersion,
        /// The reason, in one sentence.
        reason: String,
    },
    /// Versions that learned from a forgotten user are being replaced: so many batches have been replayed.
    Unlearning {
        /// Batches that were replayed.
        replayed: usize,
        /// Batches to replay.
        batches: usize,
    },
    /// The versions that learned from a forgotten user are removed.
    Unlearned {
        /// The version that took their place, if one was made.
        version: Option<PolicyVersion>,
        /// The version that its batches were replayed from, and that serves without it.
        parent: PolicyVersion,
        /// What became of it, in one sentence.
        reason: String,
    },
    /// An error that no caller was waiting for.
    Error {
        /// Its class, as in JSON errors.
        code: &'static str,
        /// The message, one sentence.
        message: String,
    },
    /// An answer ended normally and is on record.
    Answer(Box<Answer>),
    /// The feed was not pulled in time, and its oldest events were dropped.
    Missed {
        /// How many were dropped.
        count: u64,
    },
}

impl News {
    fn topic(&self) -> Option<Topic> {
        match self {
            News::Missed { .. } => None,
            News::Answer(_) => Some(Topic::Answers),
            _ => Some(Topic::Learning),
        }
    }
}

/// An answer to score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The id of the answer, for feedback.
    pub generation_id: GenerationId,
    /// The version that generated it.
    pub policy_version: PolicyVersion,
    /// The prompt as the model saw it, template applied.
    pub prompt: String,
    /// The answer.
    pub text: String,
    /// Why it ended: `stop` or `length`.
    pub finish_reason: FinishReason,
    /// Its length in tokens.
    pub completion_tokens: usize,
    /// The user it was for.
    pub user: Option<String>,
}

/// The subscribers of an engine.
#[derive(Default)]
pub(super) struct Hub(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    feeds: Vec<Weak<Feed>>,
    closed: bool,
}

impl Hub {
    /// Opens a feed that receives events from now on, for as long as it is held.
    pub(super) fn open(&self, topic: Topic) -> Result<Arc<Feed>> {
        let mut listeners = self.lock();
        if listeners.closed {
            return Err(Error::closed("the engine is closed"));
        }
        listeners.feeds.retain(|feed| feed.strong_count() > 0);
        if listeners.feeds.len() == MOST_FEEDS {
            return Err(Error::busy(format!("{MOST_FEEDS} feeds are open, expected no more")));
        }
        let feed = Arc::new(Feed { topic, state: Mutex::default(), news: Condvar::new() });
        listeners.feeds.push(Arc::downgrade(&feed));
        Ok(feed)
    }

    /// Sends an event to all subscribers; `news` is only called if there are any.
    pub(super) fn send(&self, topic: Topic, news: impl FnOnce() -> News) {
        let feeds: Vec<Arc<Feed>> = self.lock().feeds.iter().filter_map(Weak::upgrade).collect();
        let mut feeds = feeds.into_iter().filter(|feed| feed.topic == topic && !feed.lock().closed).peekable();
        if feeds.peek().is_none() {
            return;
        }
        let news = news();
        debug_assert_eq!(news.topic(), Some(topic));
        feeds.for_each(|feed| feed.push(news.clone()));
    }

    /// Closes all feeds, and refuses new ones.
    pub(super) fn close(&self) {
        let feeds = {
            let mut listeners = self.lock();
            listeners.closed = true;
            std::mem::take(&mut listeners.feeds)
        };
        feeds.iter().filter_map(Weak::upgrade).for_each(|feed| feed.close());
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        lock(&self.0)
    }
}

/// Events of one topic, to be pulled. Every method is safe from any thread; threads that pull the same feed share its
/// events.
pub struct Feed {
    topic: Topic,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    kept: VecDeque<News>,
    missed: u64,
    closed: bool,
    wake: Option<Wake>,
}

impl Feed {
    /// Waits at most `timeout` for an event (zero polls, `None` waits without limit); `None` if there was none.
    ///
    /// # Errors
    /// `Closed` once the feed or its engine is closed; events not yet pulled are gone then.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<News>> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(Error::closed("the feed is closed"));
            }
            if state.missed > 0 {
                return Ok(Some(News::Missed { count: std::mem::take(&mut state.missed) }));
            }
            if let Some(news) = state.kept.pop_front() {
                return Ok(Some(news));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            state = wait(&self.news, state, left);
        }
    }

    /// Registers a hook that is called whenever there is something to pull, at once if there already is, and at the
    /// end.
    pub fn set_wake(&self, wake: Wake) {
        let ready = {
            let mut state = self.lock();
            state.wake = Some(wake.clone());
            state.closed || state.missed > 0 || !state.kept.is_empty()
        };
        if ready {
            wake();
        }
    }

    /// Closes the feed and wakes all waiters. Idempotent.
    pub fn close(&self) {
        let wake = {
            let mut state = self.lock();
            state.closed = true;
            state.kept.clear();
            state.wake.take()
        };
        self.news.notify_all();
        if let Some(wake) = wake {
            wake();
        }
    }

    fn push(&self, news: News) {
        let wake = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            if state.kept.len() == MOST_KEPT {
                state.kept.pop_front();
                state.missed += 1;
            }
            state.kept.push_back(news);
            state.wake.clone()
        };
        self.news.notify_one();
        // Called without the lock, since the hook may use the feed.
        if let Some(wake) = wake {
            wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn activated(version: u64) -> News {
        News::VersionActivated { version: PolicyVersion(version) }
    }

    #[test]
    fn a_slow_listener_misses_the_oldest_and_is_told_how_many() {
        let hub = Hub::default();
        let feed = hub.open(Topic::Learning).unwrap();
        (0..MOST_KEPT as u64 + 3).for_each(|n| hub.send(Topic::Learning, || activated(n)));
        let next = || feed.next(Some(Duration::ZERO)).unwrap();
        assert_eq!((next(), next()), (Some(News::Missed { count: 3 }), Some(activated(3))));
        assert_eq!(std::iter::from_fn(next).count(), MOST_KEPT - 1);
    }

    #[test]
    fn a_topic_without_listeners_costs_nothing() {
        let hub = Hub::default();
        let feed = hub.open(Topic::Answers).unwrap();
        hub.send(Topic::Learning, || panic!("made for nobody"));
        assert_eq!(feed.next(Some(Duration::ZERO)), Ok(None));
        drop(feed);
        hub.send(Topic::Answers, || panic!("made for nobody"));
    }

    #[test]
    fn the_end_wakes_who_waits_and_calls_the_hook() {
        let (hub, calls) = (Hub::default(), Arc::new(AtomicU32::new(0)));
        let feed = hub.open(Topic::Learning).unwrap();
        let count = calls.clone();
        feed.set_wake(Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        let waiter = std::thread::spawn({
            let feed = feed.clone();
            move || feed.next(None).unwrap_err().code()
        });
        hub.close();
        assert_eq!((waiter.join().unwrap(), calls.load(Ordering::SeqCst)), (Code::Closed, 1));
        assert_eq!(hub.open(Topic::Learning).err().unwrap().code(), Code::Closed);
    }

    #[test]
    fn feeds_are_bounded_and_make_room_when_dropped() {
        let hub = Hub::default();
        let mut feeds: Vec<_> = (0..MOST_FEEDS).map(|_| hub.open(Topic::Learning).unwrap()).collect();
        assert_eq!(hub.open(Topic::Learning).err().unwrap().code(), Code::Busy);
        feeds.pop();
        assert!(hub.open(Topic::Learning).is_ok());
    }
}
