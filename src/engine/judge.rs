//! Turns feedback into training samples, each with one score and a record of its terms. Never trains, and never marks
//! feedback as used.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::reward_versions::{RewardStatus, RewardVersions};
use crate::config::{Config, RewardConfig};
use crate::error::{Code, Error, Result};
use crate::files;
use crate::ledger::{Ledger, Recorded};
use crate::llama::Model;
use crate::policy::Decoder;
use crate::reward::{Asked, Grader, Known, RewardModel, Scales, Source, Terms};
use crate::types::*;

/// File of the running scales, in the folder of their version.
const SCALES_FILE: &str = "reward.json";

/// Samples ready to train on.
#[derive(Default)]
pub(super) struct Samples {
    pub rollouts: Vec<Rollout>,
    /// One per rollout.
    pub records: Vec<SampleRecord>,
    /// Feedback that made them, or that can't make a sample: all of it is used up.
    pub used: Vec<u64>,
    /// Feedback that can't make a sample, with the reasons: to be set aside.
    pub unusable: Vec<(Vec<u64>, String)>,
    /// Answers left out because their version is too old.
    pub stale: usize,
}

/// Sums what is known of an answer into one score: ratings, signals, the reward model, and the application's own
/// function.
pub(super) struct Judge {
    config: RewardConfig,
    terms: Terms,
    reward_model: Option<RewardModel>,
    /// The application's own function.
    external: Option<Grader>,
    versions: RewardVersions,
    scales: Scales,
    model: Arc<Model>,
    decoder: Arc<Decoder>,
}

impl Judge {
    /// Loads the reward model, if the settings name one.
    pub fn new(config: &Config, decoder: &Arc<Decoder>, model: Arc<Model>) -> Result<Self> {
        let (versions, reward_model) =
            RewardVersions::open(&config.data, &config.reward, config.train.seed, decoder, &model)?;
        let (config, decoder) = (&config.reward, decoder.clone());
        if reward_model.is_none() && config.unrated > 0 {
            return Err(Error::arg("reward.unrated is set without reward.model, which would judge those answers"));
        }
        let timeout = Duration::from_secs(u64::from(config.external_timeout));
        let external = Source::external(config).filter(|_| config.external_weight > 0.0);
        let external = external.map(|source| source.open(timeout, &decoder, &model)).transpose()?;
        let (terms, scales) = (Terms::new(config)?, Scales::default());
        Ok(Self { config: config.clone(), terms, reward_model, external, versions, scales, model, decoder })
    }

    /// The state of the reward model.
    pub fn status(&self) -> &RewardStatus {
        self.versions.status()
    }

    /// The reward model in use, if there is one.
    pub fn reward_model(&self) -> Option<RewardModel> {
        self.reward_model.clone()
    }

    /// Whether the reward model has enough new pairs to learn from.
    pub fn learning_is_due(&mut self, ledger: &Ledger) -> bool {
        self.versions.due(ledger)
    }

    /// Trains the reward model on new pairs, and replaces it if the new one is adopted.
    pub fn learn(&mut self, ledger: &Ledger, stop: &dyn Fn() -> bool) -> Result<()> {
        if let Some(reward_model) = self.versions.learn(ledger, &self.model, &self.decoder, stop)? {
            self.reward_model = Some(reward_model);
            self.renew_scales();
        }
        Ok(())
    }

    /// A new reward model's scores are on another scale.
    fn renew_scales(&mut self) {
        self.scales_of(self.versions.status().version);
    }

    fn scales_of(&mut self, reward_version: u64) {
        if self.scales.reward_version != reward_version {
            self.scales = Scales { reward_version, ..Scales::default() };
        }
    }

    /// Number of answers without feedback that a batch takes.
    pub fn unrated(&self) -> usize {
        self.config.unrated as usize
    }

    /// Whether anything but people scores answers.
    pub fn judges_alone(&self) -> bool {
        (self.reward_model.is_some() && self.config.model_weight > 0.0) || self.external.is_some()
    }

    /// The oldest version whose answers are trained on while `active` serves.
    pub fn oldest(&self, active: PolicyVersion) -> PolicyVersion {
        match self.config.staleness {
            0 => PolicyVersion::INITIAL,
            back => PolicyVersion(active.0.saturating_sub(u64::from(back))),
        }
    }

    /// Loads the scales from a version's folder; starts with new ones if it has none.
    pub fn load(&mut self, dir: Option<&Path>) -> Result<()> {
        self.scales = Scales { reward_version: self.versions.status().version, ..Scales::default() };
        let Some(path) = dir.map(|dir| dir.join(SCALES_FILE)).filter(|path| path.exists()) else { return Ok(()) };
        let json = files::read(&path, files::MOST).map_err(|e| Error::from(e).context(path.display()))?;
        self.scales =
            serde_json::from_slice(&json).map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))?;
        self.renew_scales();
        Ok(())
    }

    /// Writes the scales into the folder of a version.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_vec(&self.scales).map_err(|e| Error::io(e.to_string()))?;
        let path = dir.join(SCALES_FILE);
        fs::write(&path, json).map_err(|e| Error::from(e).context(format!("writing {}", path.display())))
    }

    /// Makes the samples of a batch, and updates the scales with them.
    pub fn samples(&mut self, batch: &[RatedGeneration], active: PolicyVersion, stop: &AtomicBool) -> Result<Samples> {
        let oldest = self.oldest(active);
        let mut samples = Samples::default();
        let (batch, unusable) = self.usable(batch);
        samples.unusable = unusable;
        samples.used.extend(batch.iter().flat_map(|r| r.feedback_ids.iter().copied()));
        let fresh: Vec<&RatedGeneration> =
            batch.iter().copied().filter(|r| r.generation.policy_version >= oldest).collect();
        samples.stale = batch.len() - fresh.len();
        let judged = self.judge(&fresh)?;
        let external = self.ask(&fresh, stop)?;
        for ((rated, model), external) in fresh.into_iter().zip(judged).zip(external) {
            match external {
                Ok(external) => self.sum(&mut samples, rated, model, external)?,
                Err(error) => {
                    samples.used.retain(|id| !rated.feedback_ids.contains(id));
                    samples.unusable.push((rated.feedback_ids.clone(), error.message().to_owned()));
                }
            }
        }
        Ok(samples)
    }

    /// Makes the samples of answers that were trained on before: ratings and signals are summed anew, scores are those
    /// that were given then, on scales that are updated with them. `reward_version` is the reward model of that time.
    pub fn samples_again(&mut self, recorded: &[Recorded], reward_version: u64) -> Result<Samples> {
        self.scales_of(reward_version);
        let mut samples = Samples::default();
        let known: Vec<&Recorded> = recorded.iter().filter(|r| self.unusable(&r.rated).is_none()).collect();
        samples.used.extend(known.iter().flat_map(|r| r.rated.feedback_ids.iter().copied()));
        let scores = |of: fn(&Recorded) -> Option<f64>| known.iter().filter_map(|r| of(r)).collect::<Vec<f64>>();
        self.scales.model.update(&scores(|r| r.model));
        self.scales.external.update(&scores(|r| r.external));
        for Recorded { rated, model, external } in known {
            self.sum(&mut samples, rated, *model, *external)?;
        }
        Ok(samples)
    }

    /// Sums what is known of an answer, and adds the samples that it makes.
    fn sum(
        &self,
        samples: &mut Samples,
        rated: &RatedGeneration,
        model: Option<f64>,
        external: Option<f64>,
    ) -> Result<()> {
        let g = &rated.generation;
        let (rating, signals) = (rated.rating, rated.signals.clone());
        let known = Known { rating, model, external, signals, tokens: g.response.len() };
        if let Some(score) = self.terms.score(&known, &self.scales) {
            samples.add(g, g.response.clone(), SampleKind::Answer, score);
        }
        if let (Some(text), Some(score)) = (&rated.correction, self.terms.correction()) {
            let mut response = self.model.tokenize(text, false, false)?;
            response.extend(self.model.turn_end());
            samples.add(g, response, SampleKind::Correction, score);
        }
        Ok(())
    }

    /// The running scales of scores.
    pub fn scales(&self) -> Scales {
        self.scales
    }

    /// Goes back to earlier scales: a batch that has to wait has changed nothing.
    pub fn restore(&mut self, scales: Scales) {
        self.scales = scales;
    }

    /// Scores of the reward model and the application's own function, on the present scales, which are not updated.
    /// `None` if there is neither.
    pub fn score_alone(&self, answers: &[&Generation], stop: &AtomicBool) -> Result<Vec<Option<f64>>> {
        let model = match &self.reward_model {
            Some(model) if self.config.model_weight > 0.0 => {
                let pairs: Vec<(&[TokenId], &[TokenId])> =
                    answers.iter().map(|g| (&g.prompt[..], &g.response[..])).collect();
                model.score(&pairs)?.into_iter().map(|s| Some(f64::from(s)).filter(|s| s.is_finite())).collect()
            }
            _ => vec![None; answers.len()],
        };
        let external = match &self.external {
            Some(grader) if !answers.is_empty() => {
                let text = |g: &&Generation| PromptText::Text(self.model.text(&g.prompt, true));
                let prompts: Vec<PromptText> = answers.iter().map(text).collect();
                let asked: Vec<Asked> = prompts.iter().zip(answers.iter().copied()).collect();
                grader.scores(&asked, stop)?.into_iter().map(Some).collect()
            }
            _ => vec![None; answers.len()],
        };
        let score = |((g, model), external): ((&&Generation, Option<f64>), Option<f64>)| {
            let known = Known { model, external, tokens: g.response.len(), ..Known::default() };
            self.terms.score(&known, &self.scales).map(|s| s.score)
        };
        Ok(answers.iter().zip(model).zip(external).map(score).collect())
    }

    /// Why an answer can't be trained on; none if it can.
    fn unusable(&self, r: &RatedGeneration) -> Option<String> {
        let (known, Generation { prompt, response, .. }) = (self.model.n_vocab(), &r.generation);
        if prompt.is_empty() || response.is_empty() {
            return Some("the prompt or the answer has no tokens".to_owned());
        }
        let token = prompt.iter().chain(response).find(|token| **token as usize >= known)?;
        Some(format!("token {token} is outside the vocabulary of {known}"))
    }

    /// Separates usable answers from unusable ones, with the reasons: one bad row must not keep the others from
    /// teaching.
    fn usable<'a>(&self, batch: &'a [RatedGeneration]) -> (Vec<&'a RatedGeneration>, Vec<(Vec<u64>, String)>) {
        let (mut usable, mut unusable) = (Vec::new(), Vec::new());
        for rated in batch {
            match self.unusable(rated) {
                None => usable.push(rated),
                Some(why) => unusable.push((rated.feedback_ids.clone(), why)),
            }
        }
        (usable, unusable)
    }

    /// The scores of the application's own function, one per answer. If it fails on the batch, it is asked for each
    /// answer alone, since only one may be the problem. If it fails on all of them, the function itself has failed.
    fn ask(&mut self, answers: &[&RatedGeneration], stop: &AtomicBool) -> Result<Vec<Result<Option<f64>>>> {
        let Some(grader) = self.external.as_ref().filter(|_| !answers.is_empty()) else {
            return Ok(vec![Ok(None); answers.len()]);
        };
        let prompt = |r: &&RatedGeneration| PromptText::Text(self.model.text(&r.generation.prompt, true));
        let prompts: Vec<PromptText> = answers.iter().map(prompt).collect();
        let asked: Vec<Asked> = prompts.iter().zip(answers.iter().map(|r| &r.generation)).collect();
        let scores = match grader.scores(&asked, stop) {
            Ok(scores) => scores.into_iter().map(Ok).collect(),
            Err(error) if error.code() == Code::Closed || asked.len() == 1 => return Err(error),
            Err(error) => {
                let mut each: Vec<Result<f64>> = Vec::with_capacity(asked.len());
                for one in asked.chunks(1) {
                    // The first two show whether the rest is worth asking: a function that hangs takes its whole time
                    // limit.
                    if each.len() == 2 && each.iter().all(Result::is_err) {
                        return Err(error);
                    }
                    let score = grader
                        .scores(one, stop)
                        .and_then(|scores| scores.first().copied().ok_or_else(|| Error::callback("it gave no score")));
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::closed("the step was given up"));
                    }
                    each.push(score);
                }
                each
            }
        };
        let known: Vec<f64> = scores.iter().filter_map(|score| score.as_ref().ok().copied()).collect();
        self.scales.external.update(&known);
        Ok(scores.into_iter().map(|score| score.map(Some)).collect())
    }

    /// The reward model's scores, one per answer.
    fn judge(&mut self, answers: &[&RatedGeneration]) -> Result<Vec<Option<f64>>> {
        let Some(reward_model) = self.reward_model.as_ref().filter(|_| self.config.model_weight > 0.0) else {
            return Ok(vec![None; answers.len()]);
        };
        let pairs: Vec<(&[TokenId], &[TokenId])> =
            answers.iter().map(|r| (&r.generation.prompt[..], &r.generation.response[..])).collect();
        let scores: Vec<f64> = reward_model.score(&pairs)?.into_iter().map(f64::from).collect();
        let broken = scores.iter().filter(|s| !s.is_finite()).count();
        if broken > 0 {
            tracing::warn!(broken, "scores of the reward model are no finite numbers, and left out");
            self.versions.left_out(broken as u64);
        }
        self.scales.model.update(&scores);
        Ok(scores.into_iter().map(Some).collect())
    }
}

impl Samples {
    fn add(&mut self, g: &Generation, response: Vec<TokenId>, kind: SampleKind, score: Score) {
        self.rollouts.push(Rollout {
            prompt: g.prompt.clone(),
            response,
            temperature: g.sampling.temperature,
            score: score.score,
            // Written by a person, so it should become likelier whatever the critic expects.
            advantage_floor: (kind == SampleKind::Correction).then_some(score.score),
            served_logprobs: None,
            version: (kind == SampleKind::Answer).then_some(g.policy_version),
            behavior_logprobs: None,
        });
        self.records.push(SampleRecord { generation_id: g.id.clone(), kind, score });
    }
}
