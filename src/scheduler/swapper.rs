//! Makes contexts ready for new weights on a thread of its own, so that no stream waits for a file to be read or a context to
//! be made. Never decodes a request.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use super::{Command, Options, Weights};
use crate::error::{Error, Result};
use crate::llama::{Adapter, Context, Model, give_way_to_decoding};

/// Contexts at once: the active one, and those that drain. One more version waits until one is idle.
pub(super) const MAX_CONTEXTS: usize = 3;
/// Time between two looks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Weights that somebody waits to be served.
pub(super) struct Wanted {
    pub(super) weights: Weights,
    pub(super) reply: Sender<Result<()>>,
}

/// A context with its adapter on, for the scheduler's thread to use, and who is told then.
pub(super) struct Ready {
    pub(super) weights: Weights,
    pub(super) context: Context,
    pub(super) replies: Vec<Sender<Result<()>>>,
}

pub(super) struct Swapper {
    pub(super) model: Arc<Model>,
    pub(super) threads: u32,
    pub(super) options: Options,
    /// Contexts that exist, wherever they are.
    pub(super) made: usize,
    pub(super) wanted: Receiver<Wanted>,
    /// Contexts that drained.
    pub(super) idle: Receiver<Context>,
    pub(super) ready: Sender<Command>,
}

impl Swapper {
    /// Serves what is wanted until nobody can want more, or `stopping` is set.
    pub(super) fn run(mut self, stopping: &AtomicBool) {
        give_way_to_decoding();
        loop {
            let first = match self.wanted.recv_timeout(LOOK) {
                Ok(wanted) => wanted,
                Err(e) if e.is_disconnected() => return,
                Err(_) if stopping.load(Ordering::Acquire) => return,
                Err(_) => continue,
            };
            let (mut weights, mut replies) = (first.weights, vec![first.reply]);
            let Some(context) = self.idle_context(&mut weights, &mut replies, stopping) else {
                replies.iter().for_each(|r| drop(r.send(Err(Error::closed("the engine is closing")))));
                return;
            };
            let prepared = context.and_then(|context| self.prepare(context, weights.adapter.as_ref()));
            match prepared {
                // If the scheduler has gone, the replies go with the message, and whoever waits learns that.
                Ok(context) => drop(self.ready.send(Command::Swap(Box::new(Ready { weights, context, replies })))),
                Err(error) => {
                    tracing::error!(version = weights.version.0, %error, "weights not swapped");
                    replies.iter().for_each(|r| drop(r.send(Err(error.clone()))));
                }
            }
        }
    }

    /// A context for the newest of what is wanted: an idle one, a new one, or the next that drains. Only the newest weights
    /// matter; whoever asked for older ones gets at least as new. `None` if the engine closes.
    fn idle_context(
        &mut self,
        weights: &mut Weights,
        replies: &mut Vec<Sender<Result<()>>>,
        stopping: &AtomicBool,
    ) -> Option<Result<Context>> {
        let mut newest = |wanted: Wanted| {
            *weights = wanted.weights;
            replies.push(wanted.reply);
        };
        while let Ok(wanted) = self.wanted.try_recv() {
            newest(wanted);
        }
        if let Ok(context) = self.idle.try_recv() {
            return Some(Ok(context));
        }
        if self.made < MAX_CONTEXTS {
            let made = Context::new(&self.model, self.threads, self.options.context);
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

    /// Puts the adapter on the context. A context on which that failed is given up: another one is made in its place.
    fn prepare(&mut self, mut context: Context, adapter: Option<&PathBuf>) -> Result<Context> {
        let ready = put(&self.model, &mut context, adapter);
        self.made -= usize::from(ready.is_err());
        ready.map(|()| context)
    }
}

/// Loads the adapter and puts it on the context.
pub(super) fn put(model: &Arc<Model>, context: &mut Context, adapter: Option<&PathBuf>) -> Result<()> {
    let adapter = adapter.map(|path| Adapter::load(model, path)).transpose()?;
    context.set_adapter(adapter)
}
