//! Opens an engine: model, ledger, versions and threads, each after what it needs. Never serves or trains itself.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::alerts::{AlertKind, Alerts};
use super::embeddings::Embeddings;
use super::feed::{Answer, Hub, News, Topic};
use super::in_flight::InFlight;
use super::learner::{self, LearningLoop};
use super::named::Named;
use super::routes::Routes;
use super::{Engine, Inner, recovery, sampling, weight_format};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::gguf::Gguf;
use crate::ids::GenerationKind;
use crate::ledger::{Ledger, Place, Rules};
use crate::llama::{ContextOptions, Model, template_of};
use crate::overwrite::in_use;
use crate::processor::Processor;
use crate::publish::VersionStore;
use crate::scheduler::{self, Finished, OnFinished, Scheduler};
use crate::system::{cores_or, make_private_folder};
use crate::types::{FinishReason, Generation};

/// What becomes of answers and feedback while the database is away.
const WAITS: &str =
    "the database is away: answers and feedback wait on this server's disk, and are recorded once it answers";

impl Engine {
    /// Opens the model and the data folder, recovers, and starts the threads.
    ///
    /// # Errors
    /// `Arg` for settings out of range, `Model` for a file that is missing, damaged or of another kind, `Busy` if
    /// another process holds the data folder (its process id is named), `Unsupported` for a processor that lacks what
    /// the build uses, `Io` for the disk. A data folder that was not there before is not there after an error.
    pub fn open(config: Config) -> Result<Engine> {
        config.validate()?;
        Processor::detect().suffices()?;
        if config.model.as_os_str().is_empty() {
            return Err(Error::arg("model is not set, expected the path of a GGUF file"));
        }
        let data = config.data.clone();
        let missing: Vec<PathBuf> = data.ancestors().take_while(|p| !p.exists()).map(PathBuf::from).collect();
        let made = make_private_folder(&data);
        let made = made.map_err(|e| Error::from(e).context(format!("creating {}", data.display())))?;
        let opened = Self::open_in(config);
        if made && opened.is_err() {
            Ledger::take_back(&data);
            // Those above it, as long as nobody has put anything there.
            missing.iter().skip(1).take_while(|above| std::fs::remove_dir(above).is_ok()).for_each(drop);
        }
        opened
    }

    fn open_in(config: Config) -> Result<Engine> {
        let ledger = Arc::new(Ledger::open_with(Place::of(&config), Rules::new(&config.reward)?)?);
        let threads = cores_or(config.serve.threads);
        let file = Gguf::open(&config.model)?;
        let (fingerprint, sampling) = (file.fingerprint()?, sampling::defaults(&config.serve.sampling, &file));
        let served = file.paths().filter_map(in_use).collect();
        let (model, format) = weight_format::load(&config, &fingerprint, threads)?;
        if !model.is_decoder() {
            let kind = model.architecture();
            return Err(Error::unsupported(format!("{kind} models don't generate text token by token")));
        }
        let template = template_of(&model);
        if let Err(error) = &template
            && error.code() == Code::Model
        {
            return Err(error.clone());
        }
        ledger.bind_model(&fingerprint, model.name())?;
        let decides = learner::at_start(&ledger, config.serve.role)?;
        let hub = Arc::new(Hub::default());
        let alerts = Arc::new(Alerts::new(hub.clone()));
        let fault = match &template {
            Ok(template) => template.fault(),
            Err(error) => Some(error).filter(|_| model.chat_template().is_some()),
        };
        if let Some(error) = fault {
            alerts.raise(AlertKind::NoTemplate, format!("chats are refused, and other requests served: {error}"));
        }
        let waits = alerts.clone();
        ledger.on_spool(move |waiting| match waiting.entries {
            0 => waits.clear(AlertKind::Spooled),
            _ => waits.raise(AlertKind::Spooled, WAITS),
        });
        let mut store = VersionStore::open(&config.data)?;
        if let Some(url) = &config.publish.store {
            let record = ledger.clone();
            store = store.keep_also_in(url, move |version| record.made(version))?;
        }
        recovery::set_aside(&store, &ledger, &alerts)?;
        let weights = recovery::first_weights(&store, &ledger, &alerts, decides)?;
        let active = weights.version;

        let patience = Some(Duration::from_secs(config.serve.request_seconds.into())).filter(|time| !time.is_zero());
        let options = scheduler::Options {
            context: ContextOptions {
                context: config.serve.context,
                batch: config.serve.batch.min(config.serve.context),
                sequences: config.serve.slots,
                exact: false,
            },
            queue: config.serve.queue,
            max_tokens: config.serve.max_tokens,
            tune_threads: true,
            speculate: config.serve.speculate,
            patience,
        };
        let routes = Arc::new(Routes::default());
        let in_flight = Arc::new(InFlight::default());
        let recorder = record_in(ledger.clone(), model.clone(), hub.clone(), alerts.clone(), in_flight.clone());
        let failed = {
            let alerts = alerts.clone();
            let said =
                |thread: &str| format!("a bug stopped the thread {thread}: the engine is closed until a restart");
            Box::new(move |thread: &str| alerts.raise(AlertKind::SchedulerPanicked, said(thread)))
        };
        let scheduler = Scheduler::start(model.clone(), threads, options, weights, recorder, failed)?;
        let scheduler = Arc::new(scheduler);
        let parts = learner::Parts {
            ledger: ledger.clone(),
            store: store.clone(),
            scheduler: scheduler.clone(),
            model: model.clone(),
            hub: hub.clone(),
            resumed: learner::resume(&config.gate, active, (&ledger, &store, &scheduler, &routes)),
            routes: routes.clone(),
            alerts: alerts.clone(),
            in_flight: in_flight.clone(),
        };
        let learner = LearningLoop::start(&config, fingerprint, parts, active)?;
        let named = Named::new(scheduler.clone(), store.clone());
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
            routes,
            named,
            embeddings: Embeddings::new(alerts.clone(), patience),
            alerts,
            format,
            sampling,
            in_flight,
            scoring: Mutex::default(),
            _served: served,
            closed,
        };
        let engine = Engine { inner: Arc::new(inner) };
        if engine.inner.ledger.keep_reserve() {
            let said = "the disk is full: answers are given, and those that find no room are not recorded, so that \
                        nobody can rate them";
            engine.inner.alerts.raise(AlertKind::NotRecorded, said);
        }
        engine.hear_others();
        engine.learn_if_due();
        Ok(engine)
    }
}

/// Records a finished answer, then tells its client: an id that a client knows is always on record, unless the answer
/// says that it isn't. A finished answer is delivered even if the disk fails.
fn record_in(
    ledger: Arc<Ledger>,
    model: Arc<Model>,
    hub: Arc<Hub>,
    alerts: Arc<Alerts>,
    in_flight: Arc<InFlight>,
) -> OnFinished {
    Box::new(move |Finished { outcome, sink }| {
        let generation = match outcome {
            Ok(generation) => generation,
            Err(error) => {
                in_flight.ended(sink.id(), |_, _| ());
                report_panic(&error, &alerts);
                return sink.finish(Err(error));
            }
        };
        if generation.sampling.format.is_some() {
            alerts.clear(AlertKind::GuidePanicked);
        }
        if generation.id.is(GenerationKind::Examination) {
            in_flight.ended(&generation.id, |_, _| ());
            return sink.finish(Ok(generation));
        }
        let (recorded, id) = (generation.clone(), generation.id.clone());
        let (hub, model, alerts) = (hub.clone(), model.clone(), alerts.clone());
        in_flight.ended(&id, |forgotten, origin| {
            if forgotten {
                return sink.finish(Ok(unrecorded(&generation)));
            }
            let done = Box::new(move |written: Result<bool>| {
                match written {
                    Ok(true) => alerts.clear(AlertKind::NotRecorded),
                    // What it goes on from was forgotten meanwhile.
                    Ok(false) => return sink.finish(Ok(unrecorded(&recorded))),
                    Err(error) if error.code() == Code::Closed => return sink.finish(Err(error)),
                    Err(error) => {
                        let said = format!("answers are given and not recorded, so that nobody can rate them: {error}");
                        alerts.raise(AlertKind::NotRecorded, said);
                        return sink.finish(Ok(unrecorded(&recorded)));
                    }
                }
                if recorded.finish != FinishReason::Cancelled && !recorded.response.is_empty() {
                    hub.send(Topic::Answers, || News::Answer(Box::new(answer_of(&recorded, &model))));
                }
                sink.finish(Ok(recorded));
            });
            // A closed ledger drops `done` and with it the sink, which tells the client that the engine closed.
            if let Err(error) = ledger.record_from(generation, origin, done) {
                tracing::warn!(%error, "an answer was not recorded");
            }
        });
    })
}

/// Raises the alert where a bug ended an answer alone. Only what holds it to a format can do that.
pub(super) fn report_panic(error: &Error, alerts: &Alerts) {
    if error.code() == Code::Panic {
        alerts.panicked(AlertKind::GuidePanicked, error.message());
    }
}

fn unrecorded(generation: &Generation) -> Arc<Generation> {
    Arc::new(Generation { unrecorded: true, ..generation.clone() })
}

/// The event for applications that score answers.
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
