//! The handle through which the engine gives orders to the learner's thread. Never trains.

use crossbeam_channel::TryRecvError;

use super::lease::Keeper;
use super::*;

/// The handle to the learning thread.
pub(in crate::engine) struct LearningLoop {
    orders: Sender<Order>,
    due: Sender<Order>,
    /// Fails once the thread has ended; orders left in its channel are never answered.
    ended: Receiver<()>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Keeps the right to decide, where servers share a ledger.
    keeper: Mutex<Option<Keeper>>,
}

impl LearningLoop {
    /// Starts the thread. The trainer is built there, so that serving doesn't wait for it.
    pub(in crate::engine) fn start(
        config: &Config,
        base_sha256: String,
        parts: Parts,
        active: PolicyVersion,
    ) -> Result<LearningLoop> {
        let Parts { ledger, store, scheduler, model, hub, routes, resumed, alerts, in_flight } = parts;
        let (orders, inbox) = bounded(16);
        // One pending reminder is enough.
        let (due, reminders) = bounded(1);
        let (running, ended) = bounded(0);
        let status =
            TrainerStatus { state: TrainerState::Loading, batch: config.train.batch, ..TrainerStatus::default() };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            interrupt: AtomicBool::new(false),
            auto: AtomicBool::new(config.train.auto),
            reward_model: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let worker = Worker {
            config: config.clone(),
            base_sha256,
            ledger: ledger.clone(),
            store,
            scheduler,
            hub,
            alerts,
            in_flight,
            shared: shared.clone(),
            active,
            model,
            routes,
            trial: None,
            watched: None,
            resumed,
            ready: None,
            waiting: None,
            retry: Retry::default(),
            tidy: Default::default(),
            noted: Vec::new(),
            unlearning: None,
            threads: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("apa-trainer".into())
            .spawn(move || {
                let _running = running;
                worker.run(&inbox, &reminders);
            })
            .map_err(|e| Error::nomem(format!("can't start the trainer's thread: {e}")))?;
        let (told, woken) = (shared.clone(), due.clone());
        let lost = move || {
            // What a running step makes could not be recorded.
            told.interrupt.store(true, Ordering::Release);
            let _ = woken.try_send(Order::Due);
        };
        let may_decide = ledger.is_shared() && config.serve.role != Role::Server;
        let keeper = Mutex::new(may_decide.then(|| Keeper::start(ledger.clone(), lost)).transpose()?);
        Ok(LearningLoop { orders, due, ended, shared, ledger, thread: Mutex::new(Some(thread)), keeper })
    }

    /// The reward model in use, if there is one.
    pub(in crate::engine) fn reward_model(&self) -> Option<RewardModel> {
        lock(&self.shared.reward_model).clone()
    }

    /// Tells the thread that there are enough ratings. Never waits.
    pub(in crate::engine) fn nudge(&self) {
        // If the channel is full, it already holds a reminder.
        let _ = self.due.try_send(Order::Due);
    }

    /// Trains one batch and returns the outcome.
    pub(in crate::engine) fn step(&self) -> Result<PublishOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::Step(reply), &answer)
    }

    /// Trains one batch that includes fresh answers.
    pub(in crate::engine) fn roll_out(&self) -> Result<PublishOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::RollOut(reply), &answer)
    }

    /// Serves a version and trains on from it; aborts a running step.
    pub(in crate::engine) fn activate(&self, version: PolicyVersion, whole: Option<PathBuf>) -> Result<()> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Activate(version, whole, reply), &answer)
    }

    /// Serves the newest version and trains on from it; aborts a running step.
    pub(in crate::engine) fn sync(&self) -> Result<PolicyVersion> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Sync(reply), &answer)
    }

    /// Adopts versions that were set aside; aborts a running step, whose version number it may take.
    pub(in crate::engine) fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Adopt(name.map(str::to_owned), reply), &answer)
    }

    /// Serves a snapshot as a new version and trains on from it; aborts a running step.
    pub(in crate::engine) fn restore(&self, path: &Path) -> Result<PolicyVersion> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Restore(path.to_path_buf(), reply), &answer)
    }

    /// Deletes a user's data and begins to replace what learned from it; aborts a running step.
    pub(in crate::engine) fn unlearn(&self, user: &str) -> Result<UnlearnReceipt> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Unlearn(user.to_owned(), reply), &answer)
    }

    /// Whether it trains by itself.
    pub(in crate::engine) fn auto(&self) -> bool {
        self.shared.auto.load(Ordering::Acquire)
    }

    pub(in crate::engine) fn set_auto(&self, auto: bool) {
        self.shared.auto.store(auto, Ordering::Release);
    }

    fn ask<T>(&self, order: Order, answer: &Receiver<Result<T>>) -> Result<T> {
        let closed = || Error::closed("the engine is closed");
        self.orders.send(order).map_err(|_| closed())?;
        let unanswered = || match self.ended.try_recv() {
            Err(TryRecvError::Empty) => {
                Error::panic("a bug stopped the trainer, which starts again; the log says where")
            }
            _ => closed(),
        };
        crossbeam_channel::select! {
            recv(answer) -> answer => answer.map_err(|_| unanswered())?,
            recv(self.ended) -> _ => answer.try_recv().map_err(|_| closed())?,
        }
    }

    pub(in crate::engine) fn status(&self) -> TrainerStatus {
        let mut status = self.shared.status().clone();
        status.auto = self.auto();
        status.pending_ratings = self.ledger.pending_ratings();
        // A closed ledger has none.
        status.proposals = self.ledger.proposals().unwrap_or_default();
        status
    }

    /// Whether what was learned could be replaced now or once the trainer is loaded.
    ///
    /// # Errors
    /// `Unsupported` with the reason.
    pub(in crate::engine) fn check_unlearning(&self) -> Result<()> {
        let TrainerStatus { state, reason, .. } = self.status();
        match state {
            TrainerState::Off | TrainerState::Unsupported => {
                Err(Error::unsupported(reason.unwrap_or_else(|| NOT_READY.into())).context(NOT_REPLACED))
            }
            _ => Ok(()),
        }
    }

    /// Aborts the running step, for good.
    pub(in crate::engine) fn interrupt(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.interrupt.store(true, Ordering::Release);
        self.nudge();
    }

    /// Stops the thread. Idempotent.
    pub(in crate::engine) fn stop(&self) {
        self.interrupt();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the trainer's thread panicked");
        }
        let keeper = lock(&self.keeper).take();
        drop(keeper);
    }
}
