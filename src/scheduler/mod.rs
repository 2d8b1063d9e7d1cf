//! Decodes requests in batches on one thread that owns every llama.cpp context, and swaps weights under them. Never
//! records or trains: what ended is handed on.
//!
//! A swap is blue/green: the new version is put on an idle context by a thread beside, then takes new requests; running
//! ones stay pinned to theirs, and a context is idle again when its last request ended.

mod lane;
mod meters;
mod slot;
mod stop;
mod stream;
mod swapper;
mod tuner;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

pub use meters::{BOUNDS_SECONDS, Durations};
pub use stream::{Event, GenerationStream, Next, Sink, Wake};

use self::lane::Lane;
use self::meters::Meters;
use self::slot::{Job, Running};
use self::swapper::{MAX_CONTEXTS, Ready, Swapper, Wanted};
use self::tuner::Tuner;
use crate::error::{Error, Result};
use crate::llama::{Context, ContextOptions, Model, Sampler};
use crate::lock::{lock, unpoisoned};
use crate::system::unix_millis;
use crate::types::{FinishReason, GenerateRequest, Generation, GenerationId, PolicyVersion, UnixMillis};

/// Swaps that may wait to be looked at; more wait to be sent. Of those that wait, only the newest is made.
const MAX_WANTED: usize = 8;
/// Stop strings of one request.
const MAX_STOPS: usize = 16;
/// Most alternatives to a sampled token.
const MAX_TOP_LOGPROBS: u32 = 20;

/// An answer that ended, and the sink that must be told once it is recorded.
pub struct Finished {
    /// The record, or why there is none.
    pub outcome: Result<Arc<Generation>>,
    /// The client's end.
    pub sink: Sink,
}

/// Takes what ended. Called on the scheduler's thread: it must be quick.
pub type OnFinished = Box<dyn FnMut(Finished) + Send>;

/// Shape of the service.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Shape of each context; `sequences` is the number of requests decoded together.
    pub context: ContextOptions,
    /// Requests that may wait.
    pub queue: u32,
    /// Most tokens of an answer whose request names no number.
    pub max_tokens: u32,
    /// Let measurements choose how many of the threads decode. Without it the same requests give the same answers, to
    /// the last bit of their sums.
    pub tune_threads: bool,
    /// Longest time from the submission of a request to its end.
    pub patience: Option<Duration>,
}

/// Weights to serve: a version, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// The version.
    pub version: PolicyVersion,
    /// Where its weights are.
    pub source: Source,
}

/// Where the weights of a version are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the base model alone: the initial version.
    Base,
    /// In an adapter on the base.
    Adapter(PathBuf),
    /// In a whole model with the version's weights merged in, served in place of base and adapter.
    Whole(PathBuf),
}

enum Command {
    Submit(Vec<Job>),
    Swap(Box<Ready>),
}

/// Counts since the start, and the present load.
#[derive(Default)]
struct Counters {
    queued: AtomicUsize,
    running: AtomicUsize,
    completed: AtomicU64,
    generated_tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    swaps: AtomicU64,
    /// Tokens that the caches of all contexts hold, and have room for.
    cached_tokens: AtomicUsize,
    cache_capacity: AtomicUsize,
    meters: Arc<Meters>,
    versions: Mutex<Vec<PolicyVersion>>,
}

/// A snapshot of the load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Requests waiting.
    pub queued: usize,
    /// Requests being decoded.
    pub running: usize,
    /// Requests that ended since the start, however.
    pub completed: u64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens evaluated since the start.
    pub prompt_tokens: u64,
    /// Weight swaps since the start.
    pub swaps: u64,
    /// Requests refused because the queue was full, since the start.
    pub refused: u64,
    /// Tokens that the caches of the versions in use hold; idle prefixes are among them.
    pub cached_tokens: usize,
    /// Tokens they have room for.
    pub cache_capacity: usize,
    /// From the submission of a request to its first token, since the start.
    pub first_token: Durations,
    /// Between two tokens of an answer, since the start.
    pub gap: Durations,
    /// Those of them that began while the trainer worked: what training costs serving.
    #[serde(default)]
    pub gap_training: Durations,
    /// Versions on a context: the active one last, before it those with running requests.
    #[serde(rename = "serving_versions")]
    pub versions: Vec<PolicyVersion>,
}

/// The handle to the scheduler's thread.
pub struct Scheduler {
    model: Arc<Model>,
    options: Options,
    commands: Sender<Command>,
    wanted: Sender<Wanted>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    /// Nothing is sent once it is set. A command left in a channel would keep its client waiting.
    closed: RwLock<bool>,
    /// Other ends of the channels, for what the threads leave in them.
    left: (Receiver<Command>, Receiver<Wanted>),
    running: Mutex<Vec<JoinHandle<()>>>,
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
    ) -> Result<Scheduler> {
        // The queue's own count bounds the submissions; a few more places are for swaps.
        let (commands, receiver) = bounded(options.queue as usize + 8);
        let (wanted, wants) = bounded(MAX_WANTED);
        let (drained, idle) = bounded(MAX_CONTEXTS);
        let left = (receiver.clone(), wants.clone());
        let counters = Arc::new(Counters::default());
        let stopping = Arc::new(AtomicBool::new(false));
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
            lanes: vec![Lane::new(first.version, context)],
            tuner,
            drained,
            waiting: VecDeque::new(),
            on_finished,
            counters: counters.clone(),
        };
        core.publish_load();
        let ready = commands.clone();
        let gpu_layers = model.gpu_layers();
        let swapper =
            Swapper { model: model.clone(), threads, options, gpu_layers, made: 1, wanted: wants, idle, ready };
        let scheduler = Scheduler {
            model,
            options,
            commands,
            wanted,
            counters,
            stopping,
            closed: RwLock::new(false),
            left,
            running: Mutex::default(),
        };
        let stop = scheduler.stopping.clone();
        scheduler.spawn("apa-scheduler", move || core.run(&receiver, &stop))?;
        let stop = scheduler.stopping.clone();
        scheduler.spawn("apa-swapper", move || swapper.run(&stop))?;
        Ok(scheduler)
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(body)
            .map_err(|e| Error::nomem(format!("can't start the thread {name}: {e}")))?;
        lock(&self.running).push(thread);
        Ok(())
    }

    /// Queues a request under a name that no other has. `max_tokens` is cut to what the context has room for.
    ///
    /// # Errors
    /// `Arg` for an empty prompt, one that leaves no room in the context, a token outside the vocabulary, settings out
    /// of range or a format that can't be used; `Busy` if the queue is full; `Closed` after [`Scheduler::stop`].
    pub fn submit(&self, id: GenerationId, request: GenerateRequest) -> Result<GenerationStream> {
        let (job, stream) = self.job(id, request)?;
        self.queue(vec![job])?;
        Ok(stream)
    }

    /// Queues requests as one: an idle scheduler begins with all of them. Which ones share a batch then doesn't depend
    /// on how fast they came, and the same requests on fresh weights give the same answers.
    ///
    /// # Errors
    /// As [`Scheduler::submit`]; none is queued then.
    pub fn submit_together(&self, requests: Vec<(GenerationId, GenerateRequest)>) -> Result<Vec<GenerationStream>> {
        let all = requests.into_iter().map(|(id, request)| self.job(id, request)).collect::<Result<Vec<_>>>()?;
        let (jobs, streams) = all.into_iter().unzip();
        self.queue(jobs)?;
        Ok(streams)
    }

    /// Checks a request and makes both ends of its stream.
    fn job(&self, id: GenerationId, mut request: GenerateRequest) -> Result<(Job, GenerationStream)> {
        let created: UnixMillis = unix_millis();
        let context = self.options.context.context as usize;
        let prompt = &request.prompt;
        if prompt.is_empty() {
            return Err(Error::arg("the prompt is empty"));
        }
        if prompt.len() >= context {
            return Err(Error::arg(format!(
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
        if request.stop.len() > MAX_STOPS {
            return Err(Error::arg(format!("{} stop strings, at most {MAX_STOPS} are allowed", request.stop.len())));
        }
        if let Some(top) = request.logprobs.filter(|top| *top > MAX_TOP_LOGPROBS) {
            return Err(Error::arg(format!("top_logprobs is {top}, expected at most {MAX_TOP_LOGPROBS}")));
        }
        let room = u32::try_from(context - prompt.len()).unwrap_or(u32::MAX);
        let max_tokens = max_tokens.min(room);
        request.sampling.seed.get_or_insert_with(rand::random);
        let sampler = Sampler::new(&self.model, &request.sampling)?;

        let (sink, stream) = stream::stream(id.clone(), max_tokens);
        let job = Job {
            id,
            request,
            sampler,
            max_tokens,
            created,
            submitted: Instant::now(),
            patience: self.options.patience,
            meters: self.counters.meters.clone(),
            sink,
        };
        Ok((job, stream))
    }

    /// Serves other weights to requests from now on, and returns when new ones get them. Requests go on meanwhile.
    ///
    /// # Errors
    /// `Model` if the adapter can't be loaded: the old weights stay. `Closed` after [`Scheduler::stop`].
    pub fn swap(&self, weights: Weights) -> Result<()> {
        let closed = || Error::closed("the engine is closed");
        let (reply, answer) = bounded(1);
        self.send(&self.wanted, Wanted { weights, reply })?;
        answer.recv().map_err(|_| closed())?
    }

    /// Tells whether the trainer works from now on: the gaps between tokens are counted apart then.
    pub fn beside_training(&self, training: bool) {
        self.counters.meters.training.store(training, Ordering::Relaxed);
    }

    /// The present load.
    pub fn load(&self) -> Load {
        let c = &self.counters;
        Load {
            queued: c.queued.load(Ordering::Relaxed),
            running: c.running.load(Ordering::Relaxed),
            completed: c.completed.load(Ordering::Relaxed),
            generated_tokens: c.generated_tokens.load(Ordering::Relaxed),
            prompt_tokens: c.prompt_tokens.load(Ordering::Relaxed),
            swaps: c.swaps.load(Ordering::Relaxed),
            refused: c.meters.refused.load(Ordering::Relaxed),
            cached_tokens: c.cached_tokens.load(Ordering::Relaxed),
            cache_capacity: c.cache_capacity.load(Ordering::Relaxed),
            first_token: c.meters.first_token.read(),
            gap: c.meters.gap.read(),
            gap_training: c.meters.gap_training.read(),
            versions: lock(&c.versions).clone(),
        }
    }

    /// Ends the threads: running and waiting requests end as `Closed`. Idempotent.
    pub fn stop(&self) {
        *unpoisoned(self.closed.write()) = true;
        self.stopping.store(true, Ordering::Release);
        for thread in lock(&self.running).drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_string();
            if thread.join().is_err() {
                tracing::error!(name, "a thread panicked");
            }
        }
        // Dropped, they tell whoever waits for them that the engine closed.
        self.left.0.try_iter().for_each(drop);
        self.left.1.try_iter().for_each(drop);
    }

    /// Takes places in the queue, all or none, and hands the jobs on.
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

    /// Sends unless it is closed. Never waits for long: submissions are bounded by the queue's count, swaps by their
    /// one caller.
    fn send<T>(&self, to: &Sender<T>, message: T) -> Result<()> {
        let error = || Error::closed("the engine is closed");
        let closed = unpoisoned(self.closed.read());
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

/// What the thread owns.
struct Core {
    /// The versions on a context; the last one is active and takes new requests.
    lanes: Vec<Lane>,
    tuner: Tuner,
    /// Takes contexts whose last request ended, for the next swap.
    drained: Sender<Context>,
    waiting: VecDeque<Box<Job>>,
    on_finished: OnFinished,
    counters: Arc<Counters>,
}

/// How long the thread sleeps without work before it looks whether it should stop.
const IDLE: Duration = Duration::from_millis(50);

impl Core {
    fn run(mut self, commands: &Receiver<Command>, stopping: &AtomicBool) {
        let mut finished = Vec::new();
        while !stopping.load(Ordering::Acquire) {
            let idle = self.waiting.is_empty() && self.lanes.iter().all(|l| l.running() == 0);
            if idle && let Ok(command) = commands.recv_timeout(IDLE) {
                self.take(command);
            }
            while let Ok(command) = commands.try_recv() {
                self.take(command);
            }
            self.admit(&mut finished);
            self.publish_load();
            for lane in &mut self.lanes {
                self.tuner.beside_training = self.counters.meters.training.load(Ordering::Relaxed);
                let turn = lane.turn(&mut self.tuner, &mut finished);
                self.counters.prompt_tokens.fetch_add(turn.prompt_tokens, Ordering::Relaxed);
                self.counters.generated_tokens.fetch_add(turn.generated_tokens, Ordering::Relaxed);
            }
            self.hand_on(&mut finished);
            self.retire();
            self.publish_load();
        }
        // Dropping a request's sink tells its client that the engine closed; so for those that are still on their way.
        self.waiting.clear();
        let closed = Error::closed("the engine is closing");
        for lane in &mut self.lanes {
            lane.fail_all(&closed, &mut finished);
        }
        self.hand_on(&mut finished);
        self.counters.queued.store(0, Ordering::Relaxed);
        self.counters.running.store(0, Ordering::Relaxed);
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(jobs) => self.waiting.extend(jobs.into_iter().map(Box::new)),
            Command::Swap(ready) => self.swap(*ready),
        }
    }

    /// Moves waiting requests into free slots of the active lane, in order.
    fn admit(&mut self, finished: &mut Vec<Finished>) {
        let before = self.waiting.len();
        let Some(active) = self.lanes.last_mut() else { return };
        for job in std::mem::take(&mut self.waiting) {
            if job.sink.cancelled() {
                let unborn = Running::new(*job, 0);
                let (generation, sink, _) = unborn.finish(FinishReason::Cancelled, active.version);
                finished.push(Finished { outcome: Ok(generation), sink });
            } else if let Some(error) = job.late() {
                finished.push(Finished { outcome: Err(error), sink: job.sink });
            } else {
                self.waiting.push_back(job);
            }
        }
        while let Some(job) = self.waiting.pop_front() {
            if let Some(refused) = active.admit(*job) {
                self.waiting.push_front(Box::new(refused));
                break;
            }
        }
        self.counters.queued.fetch_sub(before - self.waiting.len(), Ordering::AcqRel);
    }

    /// Makes the prepared weights those that new requests get.
    fn swap(&mut self, ready: Ready) {
        self.lanes.push(Lane::new(ready.weights.version, ready.context));
        self.counters.swaps.fetch_add(1, Ordering::Relaxed);
        tracing::info!(version = ready.weights.version.0, "serving");
        self.retire();
        self.publish_load();
        ready.replies.iter().for_each(|r| drop(r.send(Ok(()))));
    }

    /// Gives the contexts of versions that have drained to the next swap.
    fn retire(&mut self) {
        let active = self.lanes.len().saturating_sub(1);
        for index in (0..active).rev() {
            if self.lanes[index].running() == 0 {
                // There is a place for each context; nobody takes it only when the engine closes.
                let _ = self.drained.try_send(self.lanes.remove(index).into_context());
            }
        }
    }

    fn hand_on(&mut self, finished: &mut Vec<Finished>) {
        self.counters.completed.fetch_add(finished.len() as u64, Ordering::Relaxed);
        for f in finished.drain(..) {
            (self.on_finished)(f);
        }
    }

    fn publish_load(&self) {
        let running = self.lanes.iter().map(Lane::running).sum();
        self.counters.running.store(running, Ordering::Relaxed);
        let (held, room) = self.lanes.iter().map(Lane::cache).fold((0, 0), |(a, b), (held, room)| (a + held, b + room));
        self.counters.cached_tokens.store(held, Ordering::Relaxed);
        self.counters.cache_capacity.store(room, Ordering::Relaxed);
        let mut versions = lock(&self.counters.versions);
        if !versions.iter().copied().eq(self.lanes.iter().map(|l| l.version)) {
            *versions = self.lanes.iter().map(|l| l.version).collect();
        }
    }
}
