//! The composition root: threads, bounded channels, shutdown, and the loop from a rating to new weights. The methods
//! here are what `ffi` and `http` show.

mod embeddings;
pub mod exchange;
mod feed;
mod form;
mod judge;
mod learner;
mod metrics;
mod reward_versions;
mod rollouts;
mod sample;
mod status;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::ledger::{Forgotten, Ledger, ReviewEntry, ReviewVerdict, Rules, StoredFeedback, StoredSample};
use crate::llama::{ChatTemplate, ContextOptions, Model, chat_tokens, template_of, template_tokens};
use crate::publish::VersionStore;
use crate::scheduler::{self, Finished, OnFinished, Request, Scheduler, Weights};
use crate::types::*;

pub use crate::scheduler::{Event, GenerationStream, Next, Wake};
pub use feed::{Answer, Feed, News, Topic};
pub use form::{FormMeasurement, ServedForm};
pub use learner::StepOutcome;
pub use reward_versions::RewardStatus;
pub use sample::{NewSample, SampleReceipt};
pub use status::{Status, TrainerStatus};

use embeddings::Embeddings;
use feed::Hub;
use learner::Learner;

/// Name of an adapter in the folder of its version.
const ADAPTER_FILE: &str = "adapter.gguf";

/// A serving, learning model. Cheap to clone; every method is safe from any thread. Dropping the last clone shuts it
/// down.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    model: Arc<Model>,
    template: Result<ChatTemplate>,
    scheduler: Arc<Scheduler>,
    ledger: Arc<Ledger>,
    learner: Learner,
    store: VersionStore,
    hub: Arc<Hub>,
    form: ServedForm,
    embeddings: Embeddings,
    closed: AtomicBool,
}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Prompt tokens; see [`Engine::chat_prompt`] and [`Engine::tokenize`].
    pub prompt: Vec<TokenId>,
    /// How to sample.
    pub sampling: Sampling,
    /// Most tokens to make; the configured default if unset.
    pub max_tokens: Option<u32>,
    /// Strings that end the answer; not part of its text. At most 16.
    pub stop: Vec<String>,
    /// Tells the log-probabilities of the sampled tokens ([`GenerationStream::logprobs`]) and of this many most
    /// probable ones, at most 20; `None` computes none.
    pub logprobs: Option<u32>,
    /// Whom it is for.
    pub user: Option<String>,
}

/// A generation and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// The answer as it was made.
    #[serde(flatten)]
    pub generation: Generation,
    /// What was said of it, oldest first.
    pub feedback: Vec<StoredFeedback>,
    /// The training samples it gave, with the terms of their rewards.
    pub samples: Vec<StoredSample>,
}

impl Engine {
    /// Opens the model and the data folder, recovers, and starts the threads.
    ///
    /// # Errors
    /// `Arg` for settings out of range, `Model` for a file that is missing, damaged or of another kind, `Busy` if
    /// another process holds the data folder (its process id is named), `Io` for the disk.
    pub fn open(config: Config) -> Result<Engine> {
        config.validate()?;
        if config.model.as_os_str().is_empty() {
            return Err(Error::arg("model is not set, expected the path of a GGUF file"));
        }
        let ledger = Arc::new(Ledger::open_with(&config.data, Rules::new(&config.reward)?)?);
        let threads = cores_or(config.serve.threads);
        let fingerprint = Gguf::open(&config.model)?.fingerprint()?;
        let (model, form) = form::load(&config, &fingerprint, threads)?;
        if !model.is_decoder() {
            let kind = model.architecture();
            return Err(Error::unsupported(format!("{kind} models don't generate text token by token")));
        }
        ledger.bind_model(&fingerprint, model.name())?;
        let store = VersionStore::open(&config.data)?;
        let known: Vec<PolicyVersion> = ledger.versions()?.iter().map(|v| v.version).collect();
        store.remove_orphans(&known)?;
        let active = ledger.active()?;
        let weights = weights_of(&store, active).map_err(|e| {
            e.context(format!("version {active} was served last, and another can be activated only once it opens"))
        })?;

        let options = scheduler::Options {
            context: ContextOptions {
                context: config.serve.context,
                batch: config.serve.batch.min(config.serve.context),
                sequences: config.serve.slots,
                exact: false,
            },
            queue: config.serve.queue,
            tune_threads: true,
            patience: Some(Duration::from_secs(config.serve.request_seconds.into())).filter(|time| !time.is_zero()),
        };
        let hub = Arc::new(Hub::default());
        let recorder = record_in(ledger.clone(), model.clone(), hub.clone());
        let scheduler = Arc::new(Scheduler::start(model.clone(), threads, options, weights, recorder)?);
        let parts = learner::Parts {
            ledger: ledger.clone(),
            store: store.clone(),
            scheduler: scheduler.clone(),
            model: model.clone(),
            hub: hub.clone(),
        };
        let learner = Learner::start(&config, fingerprint, parts, active)?;
        let template = template_of(&model);
        let closed = AtomicBool::new(false);
        let inner = Inner {
            config,
            model,
            template,
            scheduler,
            ledger,
            learner,
            store,
            hub,
            form,
            embeddings: Embeddings::default(),
            closed,
        };
        let engine = Engine { inner: Arc::new(inner) };
        engine.learn_if_due();
        Ok(engine)
    }

    /// Applies the model's own chat template and tokenizes, ready for [`GenerateRequest::prompt`].
    ///
    /// # Errors
    /// `Unsupported` without a template, `Arg` if the template refuses the messages.
    pub fn chat_prompt(&self, messages: &[ChatMessage]) -> Result<Vec<TokenId>> {
        let template = self.inner.template.as_ref().map_err(Clone::clone)?;
        chat_tokens(&self.inner.model, template, messages)
    }

    /// The same for a conversation that may use tools: messages and tools are JSON as the template gets them.
    ///
    /// # Errors
    /// As [`Engine::chat_prompt`], and `Unsupported` if the template knows no tools.
    pub fn tools_prompt(&self, messages: &[serde_json::Value], tools: &[serde_json::Value]) -> Result<Vec<TokenId>> {
        let template = self.inner.template.as_ref().map_err(Clone::clone)?;
        template_tokens(&self.inner.model, &template.render_with_tools(messages, tools)?)
    }

    /// Embeddings of texts in tokens, each the mean of the base model's last hidden states, of length 1; the policy's
    /// adapter has no part in them, so that those of yesterday can be compared with those of today. Waits for them.
    ///
    /// # Errors
    /// `Arg` for a text without tokens or longer than 2048 tokens or the context; `Busy` if too many wait; `Closed`.
    pub fn embed(&self, texts: Vec<Vec<TokenId>>) -> Result<Vec<Vec<f32>>> {
        self.check_open()?;
        self.inner.embeddings.embed(&self.inner.model, self.inner.config.serve.context, texts)
    }

    /// Tokenizes plain text, with the model's beginning-of-sequence token where it wants one.
    ///
    /// # Errors
    /// `Arg` if the text is too long to be tokenized.
    pub fn tokenize(&self, text: &str) -> Result<Vec<TokenId>> {
        self.inner.model.tokenize(text, true, false)
    }

    /// Tokenizes plain text as it is, without a beginning-of-sequence token.
    ///
    /// # Errors
    /// As [`Engine::tokenize`].
    pub fn tokenize_bare(&self, text: &str) -> Result<Vec<TokenId>> {
        self.inner.model.tokenize(text, false, false)
    }

    /// Number of tokens of the model's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.inner.model.n_vocab()
    }

    /// The text of tokens; invalid UTF-8 is replaced.
    pub fn detokenize(&self, tokens: &[TokenId]) -> String {
        self.inner.model.text(tokens, true)
    }

    /// Queues a generation.
    ///
    /// # Errors
    /// `Arg` for an empty prompt, one longer than the context, or settings out of range or a format that can't be used;
    /// `Busy` if the queue is full; `Closed` after [`Engine::shutdown`].
    pub fn generate(&self, request: GenerateRequest) -> Result<GenerationStream> {
        self.check_open()?;
        let GenerateRequest { prompt, sampling, max_tokens, stop, logprobs, user } = request;
        let max_tokens = max_tokens.unwrap_or(self.inner.config.serve.max_tokens);
        let id = GenerationId(format!("gen-{:011x}{:016x}", unix_millis(), rand::random::<u64>()));
        self.inner.scheduler.submit(Request { id, prompt, sampling, max_tokens, stop, logprobs, user })
    }

    /// A generation from the ledger.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation(&self, id: &GenerationId) -> Result<Option<Generation>> {
        self.inner.ledger.generation(id)
    }

    /// Records feedback; it is on disk when this returns.
    ///
    /// # Errors
    /// `Arg` for an unknown generation or a rating outside [-1, 1] or not a number, `Io` if it could not be written.
    pub fn feedback(&self, feedback: NewFeedback) -> Result<FeedbackReceipt> {
        self.check_open()?;
        let receipt = self.inner.ledger.add_feedback(&feedback)?;
        self.learn_if_due();
        Ok(receipt)
    }

    /// Records that one answer is better than another; it is on disk when this returns.
    ///
    /// # Errors
    /// As [`Engine::feedback`].
    pub fn prefer(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        self.check_open()?;
        let id = self.inner.ledger.add_preference(chosen, rejected, user)?;
        self.inner.learner.nudge();
        Ok(id)
    }

    /// A generation with what was said of it and what it taught: the terms of every reward that was made of it.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation_record(&self, id: &GenerationId) -> Result<Option<GenerationRecord>> {
        let Some(generation) = self.inner.ledger.generation(id)? else { return Ok(None) };
        let (feedback, samples) = (self.inner.ledger.feedback_of(id)?, self.inner.ledger.samples_of(id)?);
        Ok(Some(GenerationRecord { generation, feedback, samples }))
    }

    /// Takes in feedback from elsewhere; see [`exchange::import`].
    ///
    /// # Errors
    /// As [`exchange::import`].
    pub fn import(&self, entries: &[crate::reward::Entry], user: Option<&str>) -> Result<exchange::Imported> {
        self.check_open()?;
        let done = exchange::import(&self.inner.ledger, &self.inner.model, entries, user)?;
        self.learn_if_due();
        Ok(done)
    }

    /// Deletes a user's words: the answers made for them with their prompts, what anyone said of those, and all they
    /// said of others' answers. They are overwritten on disk when this returns. What remains are the versions that
    /// learned from them.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        self.check_open()?;
        self.inner.ledger.forget(user)
    }

    /// Users whose feedback waits for a person to look at it, and those that one has decided about.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn reviews(&self) -> Result<Vec<ReviewEntry>> {
        self.inner.ledger.reviews()
    }

    /// Decides about a user's feedback: it counts, waits, or is left out for good.
    ///
    /// # Errors
    /// `Arg` for a name that is too long, `Io`, `Closed`.
    pub fn review(&self, user: &str, verdict: ReviewVerdict) -> Result<()> {
        self.check_open()?;
        self.inner.ledger.review(user, verdict)?;
        self.learn_if_due();
        Ok(())
    }

    /// Trains on the ratings that are in (at most one batch, even a small one), publishes, and returns when it is
    /// served.
    ///
    /// # Errors
    /// `Train` or `Unsupported` with the reason; serving goes on.
    pub fn train_step(&self) -> Result<StepOutcome> {
        self.check_open()?;
        self.inner.learner.step()
    }

    /// Samples answers of the served version to the prompts of `reward.rollouts`, lets the reward model judge them,
    /// trains on them and on what feedback is in, publishes, and returns when it is served.
    ///
    /// # Errors
    /// `Arg` without `reward.rollouts` or a reward model; else as [`Engine::train_step`].
    pub fn roll_out(&self) -> Result<StepOutcome> {
        self.check_open()?;
        self.inner.learner.roll_out()
    }

    /// All versions, oldest first.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        self.inner.ledger.versions()
    }

    /// Serves `version` from now on; running requests end on theirs. Training goes on from it. A training step under
    /// way is given up; its ratings stay in.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io` or `Model` if its files are gone or damaged.
    pub fn activate(&self, version: PolicyVersion) -> Result<()> {
        self.check_open()?;
        if !self.versions()?.iter().any(|v| v.version == version) {
            return Err(Error::arg(format!("there is no version {version}")));
        }
        self.inner.learner.activate(version, None)
    }

    /// The same with the version's weights merged into a whole model, which serves without the cost of an adapter: the
    /// file `whole/VERSION.gguf` of the data folder, as `apad export` writes it. Swapped like an adapter; the next
    /// start serves the adapter.
    ///
    /// # Errors
    /// As [`Engine::activate`]; `Arg` if there is no such file or it is of another architecture or vocabulary, `NoMem`
    /// if it doesn't fit into what memory is free.
    pub fn activate_whole(&self, version: PolicyVersion) -> Result<()> {
        self.check_open()?;
        if !self.versions()?.iter().any(|v| v.version == version) {
            return Err(Error::arg(format!("there is no version {version}")));
        }
        let path = self.inner.config.data.join("whole").join(format!("{version}.gguf"));
        if !path.is_file() {
            return Err(Error::arg(format!("there is no file whole/{version}.gguf in the data folder")));
        }
        self.inner.learner.activate(version, Some(path))
    }

    /// Activates the parent of the active version and returns it.
    ///
    /// # Errors
    /// `Arg` if the initial model is active; else as [`Engine::activate`].
    pub fn rollback(&self) -> Result<PolicyVersion> {
        let versions = self.versions()?;
        let active = versions.iter().find(|v| v.active);
        let parent = active
            .and_then(|v| v.parent)
            .ok_or_else(|| Error::arg("the initial model is active, there is nothing to roll back to"))?;
        self.activate(parent)?;
        Ok(parent)
    }

    /// Writes the files of a version into one, to be carried to another data folder with the same base model.
    ///
    /// # Errors
    /// `Arg` for an unknown version, or 0, which has no files; `Io` if they are gone or damaged, or `path` can't be
    /// written.
    pub fn snapshot(&self, version: PolicyVersion, path: &Path) -> Result<()> {
        self.check_open()?;
        self.inner.store.pack(version, path)
    }

    /// Takes in what [`Engine::snapshot`] wrote as a new version, a child of the active one, and serves it. A training
    /// step under way is given up; its ratings stay in.
    ///
    /// # Errors
    /// `Io` if the file can't be read or is damaged, `Model` if it belongs to another base model or can't be served.
    pub fn restore(&self, path: &Path) -> Result<PolicyVersion> {
        self.check_open()?;
        self.inner.learner.restore(path)
    }

    /// Lets the engine train by itself whenever a batch of ratings is in, as with `train.auto`.
    ///
    /// # Errors
    /// `Unsupported` if training is switched off, `Closed`.
    pub fn start_trainer(&self) -> Result<()> {
        self.check_open()?;
        if !self.inner.config.train.enabled {
            return Err(Error::unsupported("training is switched off (train.enabled)"));
        }
        self.inner.learner.set_auto(true);
        self.learn_if_due();
        Ok(())
    }

    /// Has the engine train only by [`Engine::train_step`] from now on; ratings are kept. A step under way ends,
    /// unwaited for.
    ///
    /// # Errors
    /// `Closed`.
    pub fn stop_trainer(&self) -> Result<()> {
        self.check_open()?;
        self.inner.learner.set_auto(false);
        Ok(())
    }

    /// News of a topic, from now on. At most 64 feeds are open at a time, each keeps at most 256 news.
    ///
    /// # Errors
    /// `Busy` if there are too many, `Closed`.
    pub fn subscribe(&self, topic: Topic) -> Result<Arc<Feed>> {
        self.inner.hub.open(topic)
    }

    /// A snapshot of the state.
    pub fn status(&self) -> Status {
        let Inner { model, scheduler, form, learner, .. } = &*self.inner;
        status::snapshot(model, &scheduler.load(), form, learner.status())
    }

    /// The settings it was opened with.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Stops: refuses new requests, ends running ones as `Closed`, wakes every waiter, ends the threads, lets go of the
    /// data folder. Idempotent.
    pub fn shutdown(&self) {
        self.inner.shutdown();
    }

    /// Whether it takes calls.
    ///
    /// # Errors
    /// `Closed` if it doesn't.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::closed("the engine is closed"));
        }
        Ok(())
    }

    /// Tells the listeners of something that failed where no caller waits.
    pub(crate) fn report(&self, error: &Error) {
        tracing::warn!(%error, "failed in the background");
        let news = || News::Error { code: error.code().as_str(), message: error.to_string() };
        self.inner.hub.send(Topic::Learning, news);
    }

    fn learn_if_due(&self) {
        let train = &self.inner.config.train;
        if train.enabled && self.inner.learner.auto() && self.inner.ledger.pending_ratings() >= u64::from(train.batch) {
            self.inner.learner.nudge();
        }
    }
}

impl Inner {
    fn shutdown(&self) {
        self.closed.store(true, Ordering::Release);
        // The learner first: it waits for the scheduler while it swaps.
        self.learner.interrupt();
        self.hub.close();
        self.embeddings.stop();
        self.scheduler.stop();
        self.learner.stop();
        self.ledger.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The file of a version's weights, checked against its manifest.
fn weights_of(store: &VersionStore, version: PolicyVersion) -> Result<Weights> {
    if version == PolicyVersion::INITIAL {
        return Ok(Weights { version, adapter: None, whole: None });
    }
    store.verify(version)?;
    Ok(Weights { version, adapter: Some(store.path(version).join(ADAPTER_FILE)), whole: None })
}

/// Records what ended, then tells its client: an id that a client knows is always on record.
fn record_in(ledger: Arc<Ledger>, model: Arc<Model>, hub: Arc<Hub>) -> OnFinished {
    Box::new(move |Finished { outcome, sink }| {
        let generation = match outcome {
            Ok(generation) => generation,
            Err(error) => return sink.finish(Err(error)),
        };
        let recorded = generation.clone();
        let (hub, model) = (hub.clone(), model.clone());
        let done = Box::new(move |written: Result<()>| {
            if written.is_ok() && recorded.finish != FinishReason::Cancelled && !recorded.response.is_empty() {
                hub.send(Topic::Answers, || News::Answer(Box::new(answer_of(&recorded, &model))));
            }
            sink.finish(written.map(|()| recorded));
        });
        // A closed ledger drops `done`, and with it the sink: the client is told that the engine closed.
        if let Err(error) = ledger.record_generation(generation, done) {
            tracing::warn!(%error, "an answer was not recorded");
        }
    })
}

/// What an application that scores answers is told.
fn answer_of(generation: &Generation, model: &Model) -> Answer {
    Answer {
        generation_id: generation.id.clone(),
        policy_version: generation.policy_version,
        prompt: model.text(&generation.prompt, true),
        text: generation.text.clone(),
        finish_reason: generation.finish,
        completion_tokens: generation.response.len(),
        user: generation.user.clone(),
    }
}

/// A number of threads, 0 standing for one a core.
pub(crate) fn cores_or(threads: u32) -> u32 {
    static CORES: OnceLock<u32> = OnceLock::new();
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    if threads == 0 { *CORES.get_or_init(cores) } else { threads }
}
