//! Has a candidate and its parent answer the same prompts with the same seeds, and measures the answers. Never decides
//! about them; the answers are neither recorded nor trained on.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::judge::Judge;
use super::questions::{Anchor, Check, Question, anchors, asked, questions};
use super::rollouts::{USERS, end_of};
use crate::config::{Config, PromotionConfig};
use crate::error::{Code, Error, Result};
use crate::files;
use crate::gate::{AnchorResult, Limits, Measured, Measurements, repetition};
use crate::ids::GenerationKind;
use crate::ledger::Ledger;
use crate::llama::{Model, PromptTokens};
use crate::policy::{Decoder, Lora};
use crate::reward::Asked;
use crate::scheduler::{GenerationStream, Scheduler};
use crate::trainer::Trainer;
use crate::types::*;

/// Prompts if the settings name none.
const PROMPTS: &str = include_str!("examination_prompts.txt");
/// Text if the settings name none.
const TEXT: &str = include_str!("examination_text.txt");
/// Tokens of the text that are scored.
const TEXT_TOKENS: usize = 512;
/// Prompts that both answer at a time while nobody else is being answered.
const TOGETHER: usize = 4;
/// Polling interval of a wait for other requests.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for other requests before each part.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an examination needs.
pub(super) struct Examiner {
    config: PromotionConfig,
    prompts: Prompts,
    text: String,
    /// Tokens of the text that are scored.
    text_tokens: usize,
    anchors: Vec<Anchor>,
    model: Arc<Model>,
}

/// Where prompts come from. The built-in ones are read on first use, so a start does not need them.
enum Prompts {
    General,
    Users,
    File(Vec<Question>),
}

/// What parent and candidate answered.
type Answered = (Arc<Generation>, Arc<Generation>);

/// The examined versions and the means to examine them.
pub(super) struct Subject<'a> {
    pub scheduler: &'a Scheduler,
    pub ledger: &'a Ledger,
    /// Computes log-probabilities of answers.
    pub trainer: &'a Trainer,
    pub judge: &'a Judge,
    /// The parent's adapter; none for the initial model.
    pub parent: Option<Lora>,
    /// The candidate's adapter.
    pub adapter: &'a Lora,
    /// The candidate, whose weights are served beside the parent's.
    pub candidate: PolicyVersion,
    pub stop: &'a AtomicBool,
}

impl Subject<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

impl Examiner {
    /// Reads prompts, text and anchors, if candidates are to be examined.
    pub fn new(config: &Config, decoder: &Arc<Decoder>, model: &Arc<Model>) -> Result<Option<Self>> {
        let gate = &config.gate;
        if !gate.examine {
            return Ok(None);
        }
        let prompts = match gate.prompts.as_deref() {
            Some(USERS) => Prompts::Users,
            Some(path) => Prompts::File(questions(Path::new(path), model).map_err(|e| e.context("gate.prompts"))?),
            None => Prompts::General,
        };
        let text = match &gate.text {
            Some(path) => files::read_text(path, files::MOST)
                .map_err(|e| Error::from(e).context(format!("gate.text: reading {}", path.display())))?,
            None => TEXT.to_owned(),
        };
        if text.trim().is_empty() {
            return Err(Error::arg("gate.text names a file without words"));
        }
        let anchors = match &gate.anchors {
            Some(path) => {
                anchors(path, &PromptTokens::new(model), decoder, model).map_err(|e| e.context("gate.anchors"))?
            }
            None => Vec::new(),
        };
        let text_tokens = TEXT_TOKENS.min(config.train.max_tokens as usize);
        Ok(Some(Self { config: gate.clone(), prompts, text, text_tokens, anchors, model: model.clone() }))
    }

    /// The limits from the settings.
    pub fn limits(&self) -> Limits {
        let c = &self.config;
        Limits {
            margin: c.margin,
            kl_initial: c.kl_budget,
            kl_parent: c.kl_step,
            cut_off: c.cut_off,
            length: c.length,
            repetition: c.repetition,
            entropy: c.entropy,
            held_back: c.text_loss,
            malformed: c.malformed,
        }
    }

    /// Has both versions answer, and measures.
    ///
    /// # Errors
    /// `Closed` if it was stopped; whatever keeps answers from being made, scored or read.
    pub fn measurements(&self, subject: &Subject) -> Result<Measurements> {
        let count = self.config.count as usize;
        let plain = |prompt| Question { prompt, format: None };
        let general = || {
            let tokens = PromptTokens::new(&self.model);
            let lines = PROMPTS.lines().filter(|line| !line.is_empty()).take(count);
            lines.map(|line| asked(line, &tokens).map(plain)).collect::<Result<Vec<_>>>()
        };
        let mut questions = match &self.prompts {
            Prompts::General => general()?,
            Prompts::Users => {
                subject.ledger.recent_prompts(count)?.into_iter().map(|prompt| plain(prompt.tokens)).collect()
            }
            Prompts::File(questions) => questions.iter().take(count).cloned().collect(),
        };
        let ask = |questions: &[Question]| {
            let requests = questions.iter().zip(0..).map(|(question, dice)| self.request(&question.prompt, dice));
            self.answer(subject, &requests.collect::<Vec<_>>())
        };
        let (mut answers, mut left_out) = ask(&questions)?;
        // Users may have asked nothing yet, or be forgotten, or what they asked no longer fits.
        let built_in = answers.is_empty() && matches!(self.prompts, Prompts::Users);
        if built_in {
            questions = general()?;
            (answers, left_out) = ask(&questions)?;
        }
        if answers.is_empty() {
            let reason = left_out.map_or_else(|| "there are none".into(), |error| error.to_string());
            return Err(Error::train(format!(
                "no prompt of the examination fits serve.context or could be answered: {reason}"
            )));
        }
        let answers = self.measure(subject, &answers, &questions)?;
        let (held_back, anchors) = (self.held_back(subject)?, self.hold(subject)?);
        Ok(Measurements { answers, held_back, anchors, built_in })
    }

    fn request(&self, prompt: &[TokenId], dice: u64) -> GenerateRequest {
        GenerateRequest {
            prompt: prompt.to_vec(),
            // The plain policy, as it was trained.
            sampling: Sampling { seed: Some(dice), ..Sampling::default() },
            max_tokens: Some(self.config.max_tokens),
            ..GenerateRequest::default()
        }
    }

    /// The answers of parent and candidate to each request. Requests that don't fit either context are left out; the
    /// error is the last one's.
    fn answer(&self, subject: &Subject, requests: &[GenerateRequest]) -> Result<(Vec<Answered>, Option<Error>)> {
        let stop = || subject.stopped();
        let (mut answers, mut left_out) = (Vec::with_capacity(requests.len()), None);
        let mut rest = requests;
        while !rest.is_empty() {
            let busy = wait_for_quiet(subject.scheduler, &stop)?;
            let (part, later) = rest.split_at(if busy { 1 } else { TOGETHER.min(rest.len()) });
            rest = later;
            let submit = |request: &GenerateRequest, version| {
                let request = GenerateRequest { version, ..request.clone() };
                submit(subject.scheduler, request, &stop)
            };
            let mut streams: Vec<(GenerationStream, GenerationStream)> = Vec::new();
            for request in part {
                match (submit(request, None), submit(request, Some(subject.candidate))) {
                    (Ok(parent), Ok(candidate)) => streams.push((parent, candidate)),
                    (Err(error), _) | (_, Err(error)) => {
                        tracing::warn!(%error, "a prompt of the examination was left out");
                        left_out = Some(error);
                    }
                }
            }
            let ends =
                streams.iter().map(|(p, c)| Ok((end_of(p, &stop)?, end_of(c, &stop)?))).collect::<Result<Vec<_>>>();
            if ends.is_err() {
                streams.iter().for_each(|(p, c)| {
                    p.cancel();
                    c.cancel();
                });
            }
            answers.extend(ends?);
        }
        if let Some((_, other)) = answers.iter().find(|(_, c)| c.policy_version != subject.candidate) {
            let version = other.policy_version;
            return Err(Error::train(format!(
                "version {version} answered in place of candidate {}",
                subject.candidate
            )));
        }
        Ok((answers, left_out))
    }

    fn measure(
        &self,
        subject: &Subject,
        answers: &[(Arc<Generation>, Arc<Generation>)],
        questions: &[Question],
    ) -> Result<Vec<(Measured, Measured)>> {
        // An answer without tokens has nothing to measure.
        let whole: Vec<_> = answers.iter().filter(|(p, c)| !p.response.is_empty() && !c.response.is_empty()).collect();
        let parents: Vec<&Generation> = whole.iter().map(|(p, _)| &**p).collect();
        let candidates: Vec<&Generation> = whole.iter().map(|(_, c)| &**c).collect();
        let both: Vec<&Generation> = parents.iter().chain(&candidates).copied().collect();
        let scores = subject.judge.score_alone(&both, subject.stop)?;
        let cancel = || subject.stopped();
        let weigh = |answers: &[&Generation], adapter: Option<&Lora>| {
            let pairs: Vec<(&[TokenId], &[TokenId])> =
                answers.iter().map(|g| (&g.prompt[..], &g.response[..])).collect();
            subject.trainer.weigh(&pairs, adapter, &cancel)
        };
        let initial = weigh(&both, None)?;
        let by_parent = match &subject.parent {
            Some(parent) => weigh(&both, Some(parent))?,
            // For the initial model itself only the entropy is missing, which an adapter of zeros measures.
            None => weigh(&both, Some(&Lora::new(subject.trainer.decoder(), 1, 1.0, None, 0)?))?,
        };
        let by_candidate = weigh(&candidates, Some(subject.adapter))?;
        // By the prompt: one that could not be asked has no answer here.
        let format = |g: &Generation| questions.iter().find(|q| q.prompt == g.prompt).and_then(|q| q.format.as_ref());
        let malformed = |g: &Generation| format(g).map(|format| fits(&self.model, format, g).map(|fits| !fits));
        let malformed = both.iter().map(|g| malformed(g).transpose()).collect::<Result<Vec<_>>>()?;
        let of = |g: &Generation, score: Option<f64>| Measured {
            score,
            cut_off: g.finish == FinishReason::Length,
            tokens: g.response.len(),
            repetition: repetition(&g.response),
            ..Measured::default()
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (i, ((g, score), malformed)) in both.iter().zip(scores).zip(malformed).enumerate() {
            let (Some(initial), Some(parent)) = (initial.get(i), by_parent.get(i)) else { continue };
            let of = |g: &Generation, score: Option<f64>| Measured { malformed, ..of(g, score) };
            match i.checked_sub(parents.len()).and_then(|i| by_candidate.get(i)) {
                None => first.push(Measured {
                    kl_initial: parent.logprob - initial.logprob,
                    entropy: parent.entropy,
                    ..of(g, score)
                }),
                Some(candidate) => second.push(Measured {
                    kl_initial: candidate.logprob - initial.logprob,
                    kl_parent: candidate.logprob - parent.logprob,
                    entropy: candidate.entropy,
                    ..of(g, score)
                }),
            }
        }
        Ok(first.into_iter().zip(second).collect())
    }

    /// Mean log-probability per token of the text, under the initial model, the parent and the candidate.
    fn held_back(&self, subject: &Subject) -> Result<Option<(f64, f64, f64)>> {
        let mut text = self.model.tokenize(&self.text, true, false)?;
        text.truncate(self.text_tokens);
        let Some((first, rest)) = text.split_first().filter(|(_, rest)| !rest.is_empty()) else { return Ok(None) };
        let cancel = || subject.stopped();
        let text: [(&[TokenId], &[TokenId]); 1] = [(std::slice::from_ref(first), rest)];
        let mean = |adapter: Option<&Lora>| -> Result<f64> {
            let weighed = subject.trainer.weigh(&text, adapter, &cancel)?;
            Ok(weighed.iter().map(|w| w.logprob).sum::<f64>() / rest.len() as f64)
        };
        let initial = mean(None)?;
        let parent = subject.parent.as_ref().map_or(Ok(initial), |parent| mean(Some(parent)))?;
        Ok(Some((initial, parent, mean(Some(subject.adapter))?)))
    }

    /// Checks the anchors on the greedy answers of both.
    fn hold(&self, subject: &Subject) -> Result<Vec<AnchorResult>> {
        let greedy = |anchor: &Anchor| GenerateRequest {
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            ..self.request(&anchor.prompt, 0)
        };
        if self.anchors.is_empty() {
            return Ok(Vec::new());
        }
        let requests: Vec<GenerateRequest> = self.anchors.iter().map(greedy).collect();
        let (answers, left_out) = self.answer(subject, &requests)?;
        if let Some(error) = left_out {
            return Err(Error::train(format!("an anchor could not be asked: {error}")));
        }
        let mut results = Vec::with_capacity(answers.len());
        for (anchor, (parent, candidate)) in self.anchors.iter().zip(&answers) {
            let (held_before, held) = match &anchor.check {
                Check::Graded(grader) => {
                    let asked: [Asked; 2] = [(&anchor.text, parent), (&anchor.text, candidate)];
                    let scores = grader.scores(&asked, subject.stop)?;
                    let held = |i: usize| scores.get(i).is_some_and(|score| *score > 0.0);
                    (held(0), held(1))
                }
                Check::Format(format) => (fits(&self.model, format, parent)?, fits(&self.model, format, candidate)?),
            };
            results.push(AnchorResult { name: anchor.name.clone(), held, held_before });
        }
        Ok(results)
    }
}

/// Whether an answer that was made without a format has it; one that was cut off hasn't.
fn fits(model: &Model, format: &Format, answer: &Generation) -> Result<bool> {
    let guide = model.guide(format)?;
    Ok(answer.finish == FinishReason::Stop && guide.fits(&answer.response, &|token| model.ends(token)))
}

/// Queues a request, after a wait of bounded time where others fill the queue.
fn submit(scheduler: &Scheduler, request: GenerateRequest, stop: &dyn Fn() -> bool) -> Result<GenerationStream> {
    let since = Instant::now();
    loop {
        match scheduler.submit(GenerationId::new(GenerationKind::Examination), request.clone()) {
            Err(error) if error.code() == Code::Busy && since.elapsed() < PATIENCE && !stop() => {
                std::thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

/// Waits, for a bounded time, while other requests are queued; returns whether others are still being answered.
fn wait_for_quiet(scheduler: &Scheduler, stop: &dyn Fn() -> bool) -> Result<bool> {
    let since = Instant::now();
    loop {
        let load = scheduler.load();
        if load.queued == 0 || since.elapsed() > PATIENCE {
            return Ok(load.running > 0);
        }
        if stop() {
            return Err(Error::closed("the examination was stopped"));
        }
        std::thread::sleep(LOOK);
    }
}
