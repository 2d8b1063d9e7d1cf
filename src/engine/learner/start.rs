//! Makes the means of training: threads, the frozen base, the judge and the examiner. Never trains.

use super::*;

impl Worker {
    /// The threads of the arithmetic. `None` if they can't be started; the status says why.
    pub(super) fn pool(&self) -> Option<rayon::ThreadPool> {
        let threads = cores_or(self.config.train.threads) as usize;
        let started = self.threads.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("apa-train-{i}"))
            .start_handler(move |_| {
                give_way_to_decoding();
                lock(&started).extend(std::fs::read_link("/proc/thread-self").ok());
            })
            .build();
        let failed = |e| self.turn_off(TrainerState::Unsupported, format!("can't start the trainer's threads: {e}"));
        pool.map_err(failed).ok()
    }

    /// Loads the frozen base and the state of the active version. A model that can't be trained is served all the same.
    pub(super) fn prepare(&mut self) {
        if !self.config.train.enabled {
            return self.turn_off(TrainerState::Off, "training is switched off (train.enabled)".into());
        }
        let device = policy::device(&self.config.train.device);
        let Config { model, train, serve, .. } = &self.config;
        let decoder = device.and_then(|device| forecast::load(model, train, Some(serve), &device));
        let decoder = match decoder {
            Err(error) if error.code() == Code::Unsupported => {
                tracing::warn!(%error, "this model is served but not trained");
                return self.turn_off(TrainerState::Unsupported, error.to_string());
            }
            decoder => decoder,
        };
        match decoder.and_then(|decoder| self.load_rest(Arc::new(decoder))) {
            Ok(ready) => {
                self.ready = Some(ready);
                self.reload();
            }
            Err(error) => {
                tracing::error!(%error, "training can't start");
                let told = "nothing is learned, since training can't start: the trainer's status has the reason \
                            (`apad status`); once that is mended, a restart trains again";
                self.alerts.raise(AlertKind::NotTrained, told);
                self.turn_off(TrainerState::Off, error.to_string());
            }
        }
    }

    /// What else training needs besides the frozen base, without a trainer.
    fn load_rest(&self, decoder: Arc<Decoder>) -> Result<Ready> {
        let rollouts = Rollouts::new(&self.config.reward, &self.model)?;
        let judge = Judge::new(&self.config, &decoder, self.model.clone())?;
        *lock(&self.shared.reward_model) = judge.reward_model();
        let examiner = Examiner::new(&self.config, &decoder, &self.model)?;
        Ok(Ready { decoder, judge, trainer: None, rollouts, examiner })
    }
}
