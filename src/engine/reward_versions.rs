//! The versions of the reward model. Enough new preferences and corrections make a new one, which is adopted only if
//! pairs used for nothing else show at 95% that it is better than chance and better than the one in use. Never touches
//! the policy or the file that the settings name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::RewardConfig;
use crate::error::{Code, Error, Result};
use crate::files;
use crate::ledger::{Ledger, PairAnswer, StoredPair};
use crate::llama::Model;
use crate::policy::Decoder;
use crate::reward::{Learner, Manifest, Pair, RewardAdapter, RewardModel, Settings, is_above, lower_bound, split};
use crate::types::*;

const FOLDER: &str = "reward";
const STATE_FILE: &str = "state.json";
/// Share of the prompts whose pairs are held back; the same ones for every version.
const HELD_BACK: f64 = 0.2;
/// Share of the prompts whose pairs decide about adoption, and nothing else.
const TESTS: f64 = 0.2;
const TESTS_SEED: u64 = 0x7e57;
/// Fewest pairs in each part: with fewer, an accuracy means little.
const FEWEST: usize = 8;

/// The state of the reward model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct RewardStatus {
    /// Number of the adopted version; 0 is the file that the settings name, or none.
    pub version: u64,
    /// Number of pairs at the last attempt.
    pub pairs: u64,
    /// Accuracy of the version in use, on the pairs that decided about its adoption.
    pub accuracy: Option<f64>,
    /// Scores left out because they were not finite.
    pub not_finite: u64,
    /// The result of the last attempt.
    pub last: Option<String>,
    /// The settings' file that it started from.
    #[cfg_attr(feature = "daemon", schema(value_type = Option<String>))]
    origin: Option<PathBuf>,
}

/// The versions on disk and the one in use.
pub(super) struct RewardVersions {
    folder: PathBuf,
    /// New pairs that start an attempt; 0 never starts one.
    enough: u64,
    seed: u64,
    status: RewardStatus,
}

impl RewardVersions {
    /// Reads the state from the data folder, and opens the reward model in use, if any.
    pub fn open(
        data: &Path,
        config: &RewardConfig,
        seed: u64,
        decoder: &Arc<Decoder>,
        model: &Arc<Model>,
    ) -> Result<(Self, Option<RewardModel>)> {
        let folder = data.join(FOLDER);
        let path = folder.join(STATE_FILE);
        let mut status = RewardStatus { origin: config.model.clone(), ..RewardStatus::default() };
        if path.exists() {
            let json = files::read(&path, files::MOST).map_err(|e| Error::from(e).context(path.display()))?;
            let damaged = |e: serde_json::Error| Error::io(format!("{} is damaged: {e}", path.display()));
            let kept: RewardStatus = serde_json::from_slice(&json).map_err(damaged)?;
            // Another file in the settings starts afresh.
            if kept.origin == config.model {
                status = kept;
            }
        }
        let versions = Self { folder, enough: u64::from(config.learn), seed, status };
        let reward_model = versions.file().map(|file| RewardModel::open(decoder, model, &file)).transpose()?;
        Ok((versions, reward_model))
    }

    /// The state of the reward model.
    pub fn status(&self) -> &RewardStatus {
        &self.status
    }

    /// Counts scores that were left out.
    pub fn left_out(&mut self, scores: u64) {
        self.status.not_finite += scores;
    }

    fn file(&self) -> Option<PathBuf> {
        match self.status.version {
            0 => self.status.origin.clone(),
            version => Some(self.folder.join(format!("{version:06}.gguf"))),
        }
    }

    /// Whether there are enough new pairs since the last attempt.
    pub fn due(&mut self, ledger: &Ledger) -> bool {
        let Ok(count) = ledger.pair_count() else { return false };
        // Pairs that were forgotten, or too old to be kept, don't have to be said again.
        self.status.pairs = self.status.pairs.min(count);
        self.enough > 0 && count >= self.status.pairs + self.enough
    }

    /// Trains on all pairs, and returns the new reward model if it is adopted. A stopped attempt is repeated; a failed
    /// one only with more pairs or after a restart, since it takes minutes.
    pub fn learn(
        &mut self,
        ledger: &Ledger,
        model: &Arc<Model>,
        decoder: &Arc<Decoder>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<RewardModel>> {
        let count = ledger.pair_count()?;
        let before = (self.status.version, self.status.accuracy);
        self.attempt(count, ledger, model, decoder, stop).inspect_err(|error| {
            if error.code() != Code::Closed {
                (self.status.version, self.status.accuracy) = before;
                (self.status.pairs, self.status.last) = (count, Some(format!("failed: {error}")));
            }
        })
    }

    fn attempt(
        &mut self,
        count: u64,
        ledger: &Ledger,
        model: &Arc<Model>,
        decoder: &Arc<Decoder>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<RewardModel>> {
        let settings = Settings { validation: HELD_BACK, seed: self.seed, ..Settings::default() };
        let pairs: Vec<Pair> =
            ledger.pairs()?.iter().filter_map(|pair| tokens(pair, model, settings.max_tokens)).collect();
        let all = pairs.len();
        // Another hash makes it independent of the split below.
        let (pairs, tests) = split(pairs, TESTS, self.seed ^ TESTS_SEED);
        let (train, held) = split(pairs, HELD_BACK, self.seed);
        if [&train, &held, &tests].iter().any(|part| part.len() < FEWEST) {
            let few =
                format!("{all} usable pairs are too few to learn from {FEWEST}, choose by {FEWEST}, test on {FEWEST}");
            return self.settle(count, few).map(|()| None);
        }
        let mut manifest = Manifest::new(settings.clone(), decoder.fingerprint());
        (manifest.trained_pairs, manifest.end_token) = (train.len(), model.turn_end());
        // Loaded again, since the weights in use must not change.
        let now = self.file().map(|file| RewardModel::open(decoder, model, &file)).transpose()?;
        let before = now.as_ref().map(|reward_model| margins(reward_model, &tests)).transpose()?;
        let mut learner = Learner::new(decoder.clone(), &settings, train, held, "the ledger")?;
        // A classifier of others can be compared with, but not trained further.
        if let Some(RewardModel::Adapter(adapter)) = now {
            learner = learner.start_from(*adapter)?;
        }
        let ended = learner.run(stop, &mut |_| ())?;
        if ended.stopped {
            return Err(Error::closed("the reward model's training was stopped"));
        }
        manifest.epochs_done = ended.epochs_done;
        manifest.validation = ended.validation;
        let adapter = RewardAdapter::new(learner.finish()?, manifest);
        let new = RewardModel::Adapter(Box::new(adapter.clone()));
        let after = margins(&new, &tests)?;
        let (accuracy, sure) = ranked_right(&after);
        let said =
            |bar: &str| format!("{accuracy:.3} of {} unseen pairs right, surely above {sure:.3}; {bar}", tests.len());
        let bar = match &before {
            None => "a coin has 0.500".to_owned(),
            Some(before) => format!("{:.3} by the one in use", ranked_right(before).0),
        };
        self.status.accuracy = before.as_ref().map(|before| ranked_right(before).0);
        if sure <= 0.5 || before.as_ref().is_some_and(|before| !is_above(&after, before)) {
            return self.settle(count, format!("not adopted: {}", said(&bar))).map(|()| None);
        }
        fs::create_dir_all(&self.folder).map_err(|e| Error::from(e).context(self.folder.display()))?;
        // Above all existing files: if the state was lost, no earlier version may be overwritten.
        let taken = |version: &u64| self.folder.join(format!("{version:06}.gguf")).exists();
        let version = (self.status.version + 1..).find(|version| !taken(version)).unwrap_or(u64::MAX);
        adapter.save(&self.folder.join(format!("{version:06}.gguf")))?;
        (self.status.version, self.status.accuracy) = (version, Some(accuracy));
        self.settle(count, format!("adopted: {}", said(&bar)))?;
        Ok(Some(new))
    }

    fn settle(&mut self, pairs: u64, said: String) -> Result<()> {
        tracing::info!(version = self.status.version, pairs, outcome = said, "reward model looked at");
        self.status.pairs = pairs;
        self.status.last = Some(said);
        fs::create_dir_all(&self.folder).map_err(|e| Error::from(e).context(self.folder.display()))?;
        let json = serde_json::to_vec_pretty(&self.status).map_err(|e| Error::io(e.to_string()))?;
        let (beside, path) = (self.folder.join("state.partial"), self.folder.join(STATE_FILE));
        let write = || {
            fs::write(&beside, json)?;
            fs::File::open(&beside)?.sync_all()?;
            fs::rename(&beside, &path)?;
            fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(|e| Error::from(e).context(path.display()))
    }
}

/// The chosen answers' scores minus the rejected ones'.
fn margins(reward_model: &RewardModel, pairs: &[Pair]) -> Result<Vec<f64>> {
    let scores = |answer: fn(&Pair) -> &[TokenId]| {
        let answers: Vec<_> = pairs.iter().map(|pair| (&pair.prompt[..], answer(pair))).collect();
        reward_model.score(&answers)
    };
    let (chosen, rejected) = (scores(|p| &p.chosen)?, scores(|p| &p.rejected)?);
    Ok(chosen.iter().zip(rejected).map(|(c, r)| f64::from(*c) - f64::from(r)).collect())
}

/// Share of pairs ranked correctly, a tie counting half, and a lower confidence bound of it.
fn ranked_right(margins: &[f64]) -> (f64, f64) {
    let right: f64 = margins
        .iter()
        .map(|m| {
            if *m > 0.0 {
                1.0
            } else if *m == 0.0 {
                0.5
            } else {
                0.0
            }
        })
        .sum();
    (right / margins.len().max(1) as f64, lower_bound(right, margins.len()))
}

/// A pair with its end tokens, unless it can't be trained on.
fn tokens(pair: &StoredPair, model: &Model, most: usize) -> Option<Pair> {
    let answer = |answer: &PairAnswer| -> Option<Vec<TokenId>> {
        let mut tokens = match answer {
            PairAnswer::Tokens(tokens, _) => tokens.clone(),
            PairAnswer::Text(text) => model.tokenize(text, false, false).ok()?,
        };
        if tokens.last().is_some_and(|last| !model.ends(*last)) {
            tokens.extend(model.turn_end());
        }
        tokens.truncate(most.saturating_sub(pair.prompt.len()));
        (!tokens.is_empty()).then_some(tokens)
    };
    // Tokens outside the vocabulary would fail the whole batch.
    let known = |tokens: &[TokenId]| !tokens.is_empty() && tokens.iter().all(|t| (*t as usize) < model.n_vocab());
    let (chosen, rejected) = (answer(&pair.chosen)?, answer(&pair.rejected)?);
    if ![&pair.prompt, &chosen, &rejected].into_iter().all(|tokens| known(tokens)) {
        return None;
    }
    (chosen != rejected).then(|| Pair { line: 0, prompt: pair.prompt.clone(), chosen, rejected })
}
