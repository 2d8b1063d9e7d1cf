//! Prepares contexts for new weights on a thread of its own, so that no stream waits for a file or a context. Never
//! decodes a request.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::weights::{Source, Weights};
use crate::error::{Error, Result};
use crate::llama::{Adapter, Context, ContextOptions, Model, Placement, Threads, give_way_to_decoding};
use crate::system::free_memory;

/// Most contexts: the active one, those beside it (a candidate, and a version that a request names), and those that
/// drain. Another version waits until one is idle.
pub(super) const MAX_CONTEXTS: usize = 4;
/// Polling interval for the stop flag.
const LOOK: Duration = Duration::from_millis(50);

/// Which requests get the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// All new requests that don't name another version.
    Active,
    /// Requests that name the version.
    Beside,
}

/// Weights that a caller waits for.
pub(super) struct Wanted {
    pub(super) weights: Weights,
    pub(super) role: Role,
    pub(super) reply: Sender<Result<()>>,
}

/// A prepared context for the scheduler's thread, with the callers to notify.
pub(super) struct Ready {
    pub(super) weights: Weights,
    pub(super) role: Role,
    pub(super) context: Context,
    pub(super) replies: Vec<Sender<Result<()>>>,
}

pub(super) struct Swapper {
    pub(super) model: Arc<Model>,
    pub(super) threads: u32,
    /// Size of each context.
    pub(super) shape: ContextOptions,
    /// Where the weights of models that are loaded here lie.
    pub(super) placement: Placement,
    /// Number of existing contexts, wherever they are.
    pub(super) made: usize,
    pub(super) wanted: Receiver<Wanted>,
    /// What was wanted while something of another kind was prepared; at most one for each caller.
    pub(super) later: VecDeque<Wanted>,
    /// Contexts that drained.
    pub(super) idle: Receiver<Context>,
    /// Receives prepared contexts.
    pub(super) ready: Box<dyn Fn(Ready) + Send + Sync>,
}

impl Swapper {
    /// Prepares contexts until all senders are gone or `stopping` is set.
    pub(super) fn run(mut self, stopping: &AtomicBool) {
        loop {
            let first = match self.later.pop_front().map_or_else(|| self.wanted.recv_timeout(LOOK), Ok) {
                Ok(wanted) => wanted,
                Err(e) if e.is_disconnected() => return,
                Err(_) if stopping.load(Ordering::Acquire) => return,
                Err(_) => {
                    self.free_idle();
                    continue;
                }
            };
            let (mut weights, role, mut replies) = (first.weights, first.role, vec![first.reply]);
            let Some(context) = self.idle_context(role, &mut weights, &mut replies, stopping) else {
                replies.iter().for_each(|r| drop(r.send(Err(Error::closed("the engine is closing")))));
                return;
            };
            let prepared = context.and_then(|context| self.prepare(context, &weights));
            match prepared {
                // If the scheduler is gone, dropping the replies tells those who wait.
                Ok(context) => (self.ready)(Ready { weights, role, context, replies }),
                Err(error) => {
                    tracing::error!(version = weights.version.0, %error, "weights not swapped");
                    replies.iter().for_each(|r| drop(r.send(Err(error.clone()))));
                }
            }
        }
    }

    /// Frees contexts that nothing is wanted for, with their caches and adapters.
    fn free_idle(&mut self) {
        while let Ok(context) = self.idle.try_recv() {
            self.made -= 1;
            let freed = giving_way(|| {
                drop(context);
                Ok(())
            });
            freed.unwrap_or_else(|error| tracing::error!(%error, "a context that is idle was not freed"));
        }
    }

    /// A context for the wanted weights: an idle one, a new one, or the next that drains. Of those that are to be
    /// active only the newest matter; callers that wait for older ones get those. What is wanted in another role has
    /// its turn later. `None` if the engine closes.
    fn idle_context(
        &mut self,
        role: Role,
        weights: &mut Weights,
        replies: &mut Vec<Sender<Result<()>>>,
        stopping: &AtomicBool,
    ) -> Option<Result<Context>> {
        let later = &mut self.later;
        let mut newest = |wanted: Wanted| {
            if (role, wanted.role) == (Role::Active, Role::Active) {
                *weights = wanted.weights;
                replies.push(wanted.reply);
            } else {
                later.push_back(wanted);
            }
        };
        while let Ok(wanted) = self.wanted.try_recv() {
            newest(wanted);
        }
        if let Ok(context) = self.idle.try_recv() {
            return Some(Ok(context));
        }
        if self.made < MAX_CONTEXTS {
            let made = self.context(self.model.clone());
            self.made += usize::from(made.is_ok());
            return Some(made);
        }
        loop {
            select! {
                recv(self.idle) -> context => return context.ok().map(Ok),
                recv(self.wanted) -> wanted => newest(wanted.ok()?),
                default(LOOK) => if stopping.load(Ordering::Acquire) { return None },
            }
        }
    }

    /// Puts the weights on the context. If that fails, the context is dropped, and another one is made.
    fn prepare(&mut self, context: Context, weights: &Weights) -> Result<Context> {
        let ready = match &weights.source {
            Source::Whole(path) => {
                // Frees its memory for the one that replaces it.
                drop(context);
                self.whole(path)
            }
            source => {
                let of_base = Arc::ptr_eq(context.model(), &self.model);
                let context = if of_base { Ok(context) } else { self.context(self.model.clone()) };
                context.and_then(|mut context| {
                    giving_way(|| put(&mut context, source))?;
                    Ok(context)
                })
            }
        };
        self.made -= usize::from(ready.is_err());
        ready
    }

    /// A context of another file's model, if memory allows.
    fn whole(&self, path: &Path) -> Result<Context> {
        let needed = std::fs::metadata(path)?.len();
        if let Some(free) = free_memory().filter(|free| *free < needed + needed / 4) {
            let (needed, free) = (needed >> 20, free >> 20);
            return Err(Error::nomem(format!("{} has {needed} MB, and {free} MB of memory are free", path.display())));
        }
        let model = giving_way(|| Model::load_as(path, self.placement))?;
        if !model.speaks_like(&self.model) {
            return Err(Error::arg(format!("{} has another architecture or vocabulary than the base", path.display())));
        }
        let mut context = self.context(model)?;
        giving_way(|| put(&mut context, &Source::Base))?;
        Ok(context)
    }

    /// A new context. Its threads are started here, so that they get this thread's niceness.
    fn context(&self, model: Arc<Model>) -> Result<Context> {
        let threads = Threads::new(self.threads)?;
        giving_way(|| Context::with(&model, threads, self.shape))
    }
}

/// Runs work on a thread that gives way to decoding.
fn giving_way<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let body = || {
        give_way_to_decoding();
        work()
    };
    let panicked = |_| Err(Error::panic("making a context ready panicked"));
    std::thread::scope(|threads| threads.spawn(body).join().unwrap_or_else(panicked))
}

/// Loads the adapter, if there is one, and puts it on the context. A whole model has none: the context is its own.
pub(super) fn put(context: &mut Context, source: &Source) -> Result<()> {
    let adapter = match source {
        Source::Adapter(path) => Some(Adapter::load(context.model(), path)?),
        Source::Base | Source::Whole(_) => None,
    };
    context.set_adapter(adapter)
}
