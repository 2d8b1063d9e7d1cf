//! Samples fresh answers of the active version for the reward model to score: to prompts of a file, or to users'
//! prompts if the settings allow it. Never scores and never trains.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::RewardConfig;
use crate::error::{Error, Result};
use crate::ledger::{AskedPrompt, Ledger};
use crate::llama::{Model, PromptTokens};
use crate::prompts::{Prompt, read_prompts};
use crate::scheduler::{Event, GenerationStream, Load, Next};
use crate::types::*;

/// The value of the setting that stands for users' prompts.
pub(super) const USERS: &str = "users";
/// Polling interval of waits that can be stopped.
const LOOK: Duration = Duration::from_millis(50);

/// The source of prompts, and when the engine was last busy.
pub(super) struct Rollouts {
    source: Source,
    /// Prompts asked so far, which is where to continue.
    asked: usize,
    idle: Duration,
    share: f64,
    busy: Instant,
    completed: u64,
}

enum Source {
    File(Vec<Vec<TokenId>>),
    Users,
}

impl Rollouts {
    /// Reads the prompts, if the settings ask for rollouts.
    pub fn new(config: &RewardConfig, model: &Model) -> Result<Option<Self>> {
        let source = match config.rollouts.as_deref() {
            None => return Ok(None),
            Some(USERS) => Source::Users,
            Some(path) => Source::File(tokens_of(Path::new(path), model)?),
        };
        let idle = Duration::from_secs(u64::from(config.rollout_idle));
        let (share, busy) = (config.rollout_share, Instant::now());
        Ok(Some(Self { source, asked: 0, idle, share, busy, completed: 0 }))
    }

    /// Number of rollouts in a batch of that size.
    pub fn share_of(&self, batch: usize) -> usize {
        (self.share * batch as f64).ceil() as usize
    }

    /// Whether the engine has been idle for long enough.
    pub fn due(&mut self, load: &Load) -> bool {
        if load.running + load.queued > 0 || load.completed != self.completed {
            (self.busy, self.completed) = (Instant::now(), load.completed);
        }
        self.busy.elapsed() >= self.idle
    }

    /// Restarts the idle time.
    pub fn postpone(&mut self) {
        self.busy = Instant::now();
    }

    /// Samples `count` answers; they are on record when this returns. `stop` aborts.
    pub fn sample(
        &mut self,
        count: usize,
        submit: &dyn Fn(GenerateRequest) -> Result<GenerationStream>,
        ledger: &Ledger,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<RatedGeneration>> {
        let prompts = match &self.source {
            Source::File(prompts) => {
                let tokens = prompts.iter().cycle().skip(self.asked % prompts.len()).take(count).cloned();
                tokens.map(|tokens| AskedPrompt { tokens, user: None, origin: None }).collect()
            }
            Source::Users => ledger.recent_prompts(count)?,
        };
        self.asked = self.asked.wrapping_add(count);
        // The plain policy, which APA trains on. An answer belongs to the user whose prompt it is, to be forgotten with
        // it.
        let ask = |AskedPrompt { tokens: prompt, user, origin }| {
            submit(GenerateRequest { prompt, user, origin, ..GenerateRequest::default() })
        };
        // Prompts that no longer fit the context are left out.
        let streams: Vec<GenerationStream> = prompts.into_iter().filter_map(|prompt| ask(prompt).ok()).collect();
        let answers = streams.iter().map(|stream| end_of(stream, stop)).collect::<Result<Vec<_>>>();
        if answers.is_err() {
            streams.iter().for_each(GenerationStream::cancel);
        }
        let rollout = |generation: Arc<Generation>| RatedGeneration {
            feedback_ids: Vec::new(),
            generation: (*generation).clone(),
            rating: None,
            signals: Vec::new(),
            correction: None,
        };
        // An answer that isn't recorded may be of a user who was forgotten meanwhile, so it must not train.
        Ok(answers?.into_iter().filter(|g| !g.response.is_empty() && !g.unrecorded).map(rollout).collect())
    }
}

/// Waits for the end of an answer; `stop` aborts.
pub(super) fn end_of(stream: &GenerationStream, stop: &dyn Fn() -> bool) -> Result<Arc<Generation>> {
    loop {
        match stream.next(Some(LOOK))? {
            Next::Event(Event::Done(generation)) => return Ok(generation),
            Next::Event(_) => {}
            Next::Timeout if stop() => return Err(Error::closed("the engine stopped asking itself")),
            Next::Timeout => {}
            Next::Finished => return Err(Error::closed("an answer ended without a word")),
        }
    }
}

/// The prompts of a file, in tokens.
pub(super) fn tokens_of(path: &Path, model: &Model) -> Result<Vec<Vec<TokenId>>> {
    let (prompts, _) = read_prompts(path)?;
    let tokens = PromptTokens::new(model);
    let of = |p: &Prompt| tokens.of(&p.text).map_err(|e| e.context(format!("{}:{}", path.display(), p.line)));
    prompts.iter().map(of).collect()
}
