//! The handle of the scheduler: checks and queues requests, requests swaps, ends the threads. Never decodes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::core::{Command, Core};
use super::finished::{OnFailed, OnFinished};
use super::lane::Lane;
use super::load::{Counters, Load};
use super::slot::Job;
use super::stream::{GenerationStream, stream};
use super::swapper::{self, MAX_CONTEXTS, Role, Swapper, Wanted};
use super::tuner::Tuner;
use super::weights::{Source, Weights};
use crate::error::{Error, Result};
use crate::llama::{Context, ContextOptions, Model, Sampler};
use crate::lock::{lock, unpoisoned};
use crate::system::unix_millis;
use crate::types::{GenerateRequest, GenerationId, PolicyVersion, UnixMillis};

/// Swaps that may be queued; beyond that, senders wait. Of the queued ones only the newest is made.
const MAX_WANTED: usize = 8;

/// Options of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of each context; `sequences` is the number of requests decoded together.
    pub context: ContextOptions,
    /// Requests that may wait.
    pub queue: u32,
    /// Most tokens of an answer if the request sets no limit.
    pub max_tokens: u32,
    /// Whether measurements choose the number of decoding threads. Without that, the same requests give the same
    /// answers, to the last bit.
    pub tune_threads: bool,
    /// Whether answers without a seed of their own are guessed ahead where that is faster. As with measured threads,
    /// such requests may then give other answers, as far as rounding decides.
    pub speculate: bool,
    /// Longest time from submission to the end of a request.
    pub patience: Option<Duration>,
}

/// The handle to the scheduler's thread.
pub struct Scheduler {
    model: Arc<Model>,
    options: Options,
    commands: Sender<Command>,
    wanted: Sender<Wanted>,
    counters: Arc<Counters>,
    end: Arc<End>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

/// What ends the service, whoever ends it: its owner, or a thread of it that panicked.
struct End {
    stopping: AtomicBool,
    /// Nothing is sent once it is set. A command left in a channel would keep its client waiting.
    closed: RwLock<bool>,
    /// Receiving ends of the channels, to drop what the threads leave in them.
    left: (Receiver<Command>, Receiver<Wanted>),
    counters: Arc<Counters>,
    on_failed: OnFailed,
}

impl End {
    /// Nothing is taken any more, and the threads end.
    fn close(&self) {
        *unpoisoned(self.closed.write()) = true;
        self.stopping.store(true, Ordering::Release);
    }

    /// Drops what nobody takes any more, which tells whoever waits for it that the engine closed.
    fn drop_left(&self) {
        self.left.0.try_iter().for_each(drop);
        self.left.1.try_iter().for_each(drop);
    }

    /// Runs a thread's body. After a panic nothing can take its place: what it held is gone, contexts with the answers
    /// in them. The service is closed then, so that nobody waits for it.
    fn guard(&self, name: &str, body: impl FnOnce()) {
        let panicked = catch_unwind(AssertUnwindSafe(body)).is_err();
        if panicked {
            self.close();
            self.counters.panics.fetch_add(1, Ordering::Relaxed);
            self.counters.queued.store(0, Ordering::Relaxed);
            self.counters.running.store(0, Ordering::Relaxed);
        }
        // Also by the thread that ends because the other panicked: it may have sent something meanwhile.
        self.drop_left();
        if panicked {
            (self.on_failed)(name);
        }
    }
}

impl Scheduler {
    /// Loads the first weights and starts the thread.
    ///
    /// # Errors
    /// `Model` or `NoMem` if the context or the adapter can't be made.
    pub fn start(
        model: Arc<Model>,
        threads: u32,
        options: Options,
        first: Weights,
        on_finished: OnFinished,
        on_failed: OnFailed,
    ) -> Result<Scheduler> {
        // The queue's count bounds the submissions; a few more places are for swaps.
        let (commands, receiver) = bounded(options.queue as usize + 8);
        let (wanted, wants) = bounded(MAX_WANTED);
        let (drained, idle) = bounded(MAX_CONTEXTS);
        let left = (receiver.clone(), wants.clone());
        let counters = Arc::new(Counters::default());
        let end = Arc::new(End {
            stopping: AtomicBool::new(false),
            closed: RwLock::new(false),
            left,
            counters: counters.clone(),
            on_failed,
        });
        if let Source::Whole(path) = &first.source {
            let path = path.display();
            return Err(Error::arg(format!(
                "{path} can't be the first weights, expected the base or an adapter on it"
            )));
        }
        let mut context = Context::new(&model, threads, options.context)?;
        let tuner = if options.tune_threads { Tuner::new } else { Tuner::fixed }(threads, context.decoder_pin());
        swapper::put(&mut context, &first.source)?;
        let core = Core {
            lanes: vec![Lane::new(first.version, context, options.speculate)],
            speculate: options.speculate,
            beside: Vec::new(),
            tuner,
            drained,
            waiting: VecDeque::new(),
            on_finished,
            counters: counters.clone(),
        };
        core.publish_load();
        let to_core = commands.clone();
        // Only refused when the engine closes; dropping the replies tells those who wait.
        let ready = Box::new(move |ready| drop(to_core.send(Command::Swap(Box::new(ready)))));
        let placement = model.placement();
        let swapper = Swapper {
            model: model.clone(),
            threads,
            shape: options.context,
            placement,
            made: 1,
            wanted: wants,
            later: VecDeque::new(),
            idle,
            ready,
        };
        let scheduler = Scheduler { model, options, commands, wanted, counters, end, running: Mutex::default() };
        scheduler.spawn("apa-scheduler", move |stop| core.run(&receiver, stop))?;
        scheduler.spawn("apa-swapper", move |stop| swapper.run(stop))?;
        Ok(scheduler)
    }

    fn spawn(&self, name: &'static str, body: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<()> {
        let end = self.end.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || end.guard(name, || body(&end.stopping)))
            .map_err(|e| Error::nomem(format!("can't start the thread {name}: {e}")))?;
        lock(&self.running).push(thread);
        Ok(())
    }

    /// Queues a request under a unique id. `max_tokens` is reduced to what the context has room for.
    ///
    /// # Errors
    /// `Arg` for an empty prompt, one that leaves no room in the context, a token outside the vocabulary, settings out
    /// of range or a format that can't be used; `Busy` if the queue is full; `Closed` after [`Scheduler::stop`].
    pub fn submit(&self, id: GenerationId, request: GenerateRequest) -> Result<GenerationStream> {
        let (job, stream) = self.job(id, request)?;
        self.queue(vec![job])?;
        Ok(stream)
    }

    /// Queues requests as one unit, which an idle scheduler starts together. Which of them share a batch then doesn't
    /// depend on timing, so the same requests on fresh weights give the same answers.
    ///
    /// # Errors
    /// As [`Scheduler::submit`]; on an error none is queued.
    pub fn submit_together(&self, requests: Vec<(GenerationId, GenerateRequest)>) -> Result<Vec<GenerationStream>> {
        let all = requests.into_iter().map(|(id, request)| self.job(id, request)).collect::<Result<Vec<_>>>()?;
        let (jobs, streams) = all.into_iter().unzip();
        self.queue(jobs)?;
        Ok(streams)
    }

    /// Checks a request and creates both ends of its stream.
    fn job(&self, id: GenerationId, mut request: GenerateRequest) -> Result<(Job, GenerationStream)> {
        let created: UnixMillis = unix_millis();
        let context = self.options.context.context as usize;
        let prompt = &request.prompt;
        if prompt.is_empty() {
            return Err(Error::arg("the prompt is empty"));
        }
        if prompt.len() >= context {
            return Err(Error::context_length(format!(
                "the prompt has {} tokens, the context of {context} leaves no room for an answer",
                prompt.len()
            )));
        }
        if let Some(token) = prompt.iter().find(|t| **t as usize >= self.model.n_vocab()) {
            return Err(Error::arg(format!("token {token} is outside the vocabulary of {}", self.model.n_vocab())));
        }
        let max_tokens = request.max_tokens.unwrap_or(self.options.max_tokens);
        if max_tokens == 0 {
            return Err(Error::arg("max_tokens is 0, expected at least 1"));
        }
        if request.stop.len() > GenerateRequest::MAX_STOPS {
            return Err(Error::arg(format!(
                "{} stop strings, at most {} are allowed",
                request.stop.len(),
                GenerateRequest::MAX_STOPS
            )));
        }
        if let Some(top) = request.logprobs.filter(|top| *top > GenerateRequest::MAX_LOGPROBS) {
            return Err(Error::arg(format!(
                "top_logprobs is {top}, expected at most {}",
                GenerateRequest::MAX_LOGPROBS
            )));
        }
        let room = u32::try_from(context - prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = max_tokens.min(room);
        let repeatable = request.sampling.seed.is_some();
        // Below 2^53: in many languages all numbers are floats, and the seed is told to repeat the answer.
        request.sampling.seed.get_or_insert_with(|| rand::random::<u64>() >> 11);
        let sampler = Sampler::new(&self.model, &request.sampling)?;
        let guide = request.sampling.format.as_ref().map(|format| self.model.guide(format)).transpose()?;

        let (sink, stream) = stream(id.clone(), max_tokens);
        let job = Job {
            id,
            request,
            sampler,
            guide,
            repeatable,
            max_tokens,
            created,
            submitted: Instant::now(),
            passed: 0,
            patience: self.options.patience,
            meters: self.counters.meters.clone(),
            sink,
        };
        Ok((job, stream))
    }

    /// Serves other weights from now on, and returns when new requests get them. Running requests continue meanwhile.
    ///
    /// # Errors
    /// `Model` if the adapter can't be loaded: the old weights stay. `Closed` after [`Scheduler::stop`].
    pub fn swap(&self, weights: Weights) -> Result<()> {
        self.want(weights, Role::Active, Duration::MAX)
    }

    /// Serves other weights beside the active ones to requests that name their version, and returns when those get
    /// them. They are served until [`Scheduler::leave`].
    ///
    /// # Errors
    /// As [`Scheduler::swap`].
    pub fn serve_beside(&self, weights: Weights) -> Result<()> {
        self.serve_beside_within(weights, Duration::MAX)
    }

    /// The same, if it takes no longer than that.
    ///
    /// # Errors
    /// Also `Busy` if it takes longer, because all contexts are in use.
    pub fn serve_beside_within(&self, weights: Weights, patience: Duration) -> Result<()> {
        // One context is enough for all who serve the same version.
        let (reply, shared) = bounded(1);
        self.send(&self.commands, Command::Share(weights.version, reply))?;
        if shared.recv().map_err(|_| Error::closed("the engine is closed"))? {
            return Ok(());
        }
        self.want(weights, Role::Beside, patience)
    }

    /// Stops serving a version beside the active one: running requests finish on it, new ones that name it get the
    /// active version.
    ///
    /// # Errors
    /// `Closed` after [`Scheduler::stop`].
    pub fn leave(&self, version: PolicyVersion) -> Result<()> {
        self.send(&self.commands, Command::Leave(version))
    }

    fn want(&self, weights: Weights, role: Role, patience: Duration) -> Result<()> {
        let (reply, answer) = bounded(1);
        let version = weights.version;
        self.send(&self.wanted, Wanted { weights, role, reply })?;
        match answer.recv_timeout(patience) {
            Ok(done) => done,
            Err(e) if e.is_timeout() => Err(Error::busy(format!(
                "version {version} can't be served now: other versions still answer, ask again"
            ))),
            Err(_) => Err(Error::closed("the engine is closed")),
        }
    }

    /// Tells the scheduler whether the trainer is working: gaps between tokens are counted separately then.
    pub fn beside_training(&self, training: bool) {
        self.counters.meters.training.store(training, Ordering::Relaxed);
    }

    /// The present load.
    pub fn load(&self) -> Load {
        Load { mask: self.model.mask_times(), ..self.counters.load() }
    }

    /// Ends the threads: running and queued requests end as `Closed`. Idempotent.
    pub fn stop(&self) {
        self.end.close();
        for thread in lock(&self.running).drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_string();
            if thread.join().is_err() {
                tracing::error!(name, "a thread panicked");
            }
        }
        self.end.drop_left();
    }

    /// Whether it takes requests: not after [`Scheduler::stop`], nor after a panic of its threads.
    pub fn is_open(&self) -> bool {
        !*unpoisoned(self.end.closed.read())
    }

    /// Takes places in the queue, all or none, and passes the jobs on.
    fn queue(&self, jobs: Vec<Job>) -> Result<()> {
        let limit = self.options.queue as usize;
        let more = |n: usize| n.checked_add(jobs.len()).filter(|sum| *sum <= limit);
        let taken = self.counters.queued.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        taken.map_err(|_| {
            self.counters.meters.refused.fetch_add(jobs.len() as u64, Ordering::Relaxed);
            Error::busy(format!("{limit} requests are waiting already"))
        })?;
        self.send(&self.commands, Command::Submit(jobs))
    }

    /// Sends unless the scheduler is closed. Never waits long: submissions are bounded by the queue's count, swaps by
    /// their single caller.
    fn send<T>(&self, to: &Sender<T>, message: T) -> Result<()> {
        let error = || Error::closed("the engine is closed");
        let closed = unpoisoned(self.end.closed.read());
        if *closed {
            return Err(error());
        }
        to.send(message).map_err(|_| error())
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}
