//! The handle to the learning thread: what the engine asks of it. Never trains.

use crossbeam_channel::TryRecvError;

use super::*;

/// The handle to the learning thread.
pub(in crate::engine) struct LearningLoop {
    orders: Sender<Order>,
    due: Sender<Order>,
    /// Gives an error once the thread has ended; an order it left in its channel is never answered.
    ended: Receiver<()>,
    shared: Arc<Shared>,
    ledger: Arc<Ledger>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LearningLoop {
    /// Starts the thread. The trainer is built on it, so that serving doesn't wait.
    pub(in crate::engine) fn start(
        config: &Config,
        base_sha256: String,
        parts: Parts,
        active: PolicyVersion,
    ) -> Result<LearningLoop> {
        let Parts { ledger, store, scheduler, model, hub, routes, alerts, in_flight } = parts;
        let (orders, inbox) = bounded(16);
        // One reminder is as good as many.
        let (due, reminders) = bounded(1);
        let (running, ended) = bounded(0);
        let status =
            TrainerStatus { state: TrainerState::Loading, batch: config.train.batch, ..TrainerStatus::default() };
        let shared = Arc::new(Shared {
            status: Mutex::new(status),
            interrupt: AtomicBool::new(false),
            auto: AtomicBool::new(config.train.auto),
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
            ready: None,
            waiting: None,
            retry: Retry::default(),
            threads: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("apa-trainer".into())
            .spawn(move || {
                let _running = running;
                worker.run(&inbox, &reminders);
            })
            .map_err(|e| Error::nomem(format!("can't start the trainer's thread: {e}")))?;
        Ok(LearningLoop { orders, due, ended, shared, ledger, thread: Mutex::new(Some(thread)) })
    }

    /// Tells the thread that a batch is in. Never waits.
    pub(in crate::engine) fn nudge(&self) {
        // A full channel holds the same reminder already.
        let _ = self.due.try_send(Order::Due);
    }

    /// Trains one batch and returns what came of it.
    pub(in crate::engine) fn step(&self) -> Result<PublishOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::Step(reply), &answer)
    }

    /// Trains one batch with fresh answers in it.
    pub(in crate::engine) fn roll_out(&self) -> Result<PublishOutcome> {
        let (reply, answer) = bounded(1);
        self.ask(Order::RollOut(reply), &answer)
    }

    /// Serves a version and goes on from it; interrupts a step under way.
    pub(in crate::engine) fn activate(&self, version: PolicyVersion, whole: Option<PathBuf>) -> Result<()> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Activate(version, whole, reply), &answer)
    }

    /// Serves the newest version and goes on from it; interrupts a step under way.
    pub(in crate::engine) fn sync(&self) -> Result<PolicyVersion> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Sync(reply), &answer)
    }

    /// Takes in what was set aside; interrupts a step under way, whose version's number it may take.
    pub(in crate::engine) fn adopt(&self, name: Option<&str>) -> Result<Vec<Adopted>> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Adopt(name.map(str::to_owned), reply), &answer)
    }

    /// Serves a snapshot as a new version and goes on from it; interrupts a step under way.
    pub(in crate::engine) fn restore(&self, path: &Path) -> Result<PolicyVersion> {
        let (reply, answer) = bounded(1);
        self.shared.interrupt.store(true, Ordering::Release);
        self.ask(Order::Restore(path.to_path_buf(), reply), &answer)
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
        status
    }

    /// Gives up the step under way, for good.
    pub(in crate::engine) fn interrupt(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.interrupt.store(true, Ordering::Release);
        self.nudge();
    }

    /// Ends the thread. Idempotent.
    pub(in crate::engine) fn stop(&self) {
        self.interrupt();
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the trainer's thread panicked");
        }
    }
}
