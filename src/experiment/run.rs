//! The run of one seed: sample → reward → train → record → serve the new policy. All randomness of a step follows from
//! the seed and the step's number, so that a resumed run equals one that was not stopped.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::folder::{Folder, METRICS_FILE, SAMPLES_FILE, SampleLine, seed_folder};
use super::lab::{Asked, Lab};
use super::order::order;
use super::record::{Sampled, StepRecord, Times};
use super::thumbs::AMONG;
use crate::config::TrainConfig;
use crate::error::{Code, Error, Result};
use crate::scheduler::{Event, Finished, GenerationStream, Next, Scheduler, Source, Weights};
use crate::trainer::Trainer;
use crate::types::{GenerateRequest, Generation, GenerationId, PolicyVersion, Rollout, Sampling};

/// Polling interval of waits that can be stopped.
const LOOK: Duration = Duration::from_millis(50);

/// Answers that are remembered for [`TrainConfig::replay`]: as many as the daemon draws from.
const TAUGHT_AMONG: usize = 4096;

/// The result of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// All its steps, including those before a resume.
    pub records: Vec<StepRecord>,
    /// Whether it was stopped before its last step. Its checkpoint holds every step that is recorded.
    pub stopped: bool,
}

impl Lab {
    /// Runs one seed in its folder under `dir`, from its checkpoint if it has one. `watch` sees every step once it is
    /// recorded. When `stop` is set, the running step is aborted and all earlier ones are kept.
    ///
    /// # Errors
    /// `Callback` if the reward fails, `Io` for the disk or a damaged checkpoint, else as the trainer and the
    /// scheduler. Even then the checkpoint holds every recorded step, if the disk allows.
    pub fn run(&self, seed: u64, dir: &Path, stop: &AtomicBool, watch: &mut dyn FnMut(&StepRecord)) -> Result<Ended> {
        let mut run = Run::open(self, seed, dir, stop)?;
        let outcome = run.all(watch);
        let kept = run.keep();
        match outcome {
            Err(error) if error.code() == Code::Closed && stop.load(Ordering::Relaxed) => kept?,
            Err(error) => {
                if let Err(also) = kept {
                    tracing::error!(error = %also, "the checkpoint could not be written");
                }
                return Err(error);
            }
            Ok(()) => kept?,
        }
        let stopped = (run.records.len() as u64) < self.plan.steps;
        Ok(Ended { records: run.records, stopped })
    }
}

/// A prompt, its answer, and the server's log-probabilities of the answer's tokens.
type Answer<'a> = (&'a Asked, Arc<Generation>, Option<Vec<f32>>);

/// A scored batch of samples.
struct Judged<'a> {
    answers: Vec<(&'a Asked, Arc<Generation>)>,
    scores: Vec<f64>,
    /// What was made of the scores, if thumbs are trained on.
    thumbs: Option<Vec<f64>>,
    rollouts: Vec<Rollout>,
}

struct Run<'a> {
    lab: &'a Lab,
    seed: u64,
    folder: Folder,
    stop: &'a AtomicBool,
    trainer: Trainer,
    scheduler: Option<Scheduler>,
    records: Vec<StepRecord>,
    /// Answers that taught before, oldest first: what the ledger is to the daemon.
    taught: VecDeque<Rollout>,
    /// Scores of the newest answers, with which a rater compares.
    scores: VecDeque<f64>,
    /// Steps that the checkpoint on disk holds.
    kept: u64,
}

impl<'a> Run<'a> {
    fn open(lab: &'a Lab, seed: u64, dir: &Path, stop: &'a AtomicBool) -> Result<Self> {
        let folder = Folder::open(&seed_folder(dir, seed))?;
        let config = TrainConfig { seed, ..lab.plan.config.train.clone() };
        let checkpoint = folder.checkpoint()?;
        let kept = checkpoint.as_ref().map_or(0, |(step, _)| *step);
        let mut trainer = lab.pool.install(|| match &checkpoint {
            Some((_, path)) => Trainer::load(lab.decoder.clone(), &config, path),
            None => Trainer::new(lab.decoder.clone(), &config),
        })?;
        trainer.keep_before_in(&seed_folder(dir, seed));
        let records = folder.rewind(kept)?;
        trainer.adapter().write_gguf(&folder.adapter(), &[])?;
        let (taught, scores) = (VecDeque::new(), VecDeque::new());
        let mut run = Self { lab, seed, folder, stop, trainer, scheduler: None, records, taught, scores, kept };
        // With a data set, what is sampled teaches nothing; and its own answers come again and again anyway.
        if lab.dataset.is_none() {
            let temperature = lab.plan.temperature;
            let samples = run.folder.samples(TAUGHT_AMONG)?;
            run.scores = samples.iter().skip(samples.len().saturating_sub(AMONG)).map(SampleLine::score).collect();
            run.taught = samples.into_iter().map(|s| s.rollout(temperature)).collect();
        }
        Ok(run)
    }

    fn all(&mut self, watch: &mut dyn FnMut(&StepRecord)) -> Result<()> {
        while (self.records.len() as u64) < self.lab.plan.steps {
            let record = self.step()?;
            watch(&record);
            self.records.push(record);
            if (self.records.len() as u64).is_multiple_of(self.lab.plan.checkpoint_every) {
                self.keep()?;
            }
        }
        Ok(())
    }

    /// Writes the checkpoint, if there were steps since the last one.
    fn keep(&mut self) -> Result<()> {
        let steps = self.records.len() as u64;
        if steps > self.kept {
            self.folder.keep(steps, &self.trainer)?;
            self.kept = steps;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<StepRecord> {
        let step = self.records.len() as u64 + 1;
        let mut times = Times::default();
        let offline = self.lab.dataset.is_some();
        let judged =
            if !self.lab.prompts.is_empty() && (!offline || (step - 1).is_multiple_of(self.lab.plan.evaluate_every)) {
                Some(self.judged(step, &mut times)?)
            } else {
                None
            };
        let stop = self.stop;
        let stopped = || stop.load(Ordering::Relaxed);
        // On fixed answers the estimators say nothing about the policy, so it is measured on its own samples.
        let measured = match &judged {
            Some(judged) if offline => timed(&mut times.measure, || {
                self.lab.pool.install(|| self.trainer.measure(&judged.rollouts, &stopped)).map(Some)
            })?,
            _ => None,
        };
        let fixed = self.fixed(step);
        let rollouts = match (&fixed, &judged) {
            (Some(fixed), _) => fixed,
            (None, Some(judged)) => &judged.rollouts,
            (None, None) => return Err(Error::arg("there is nothing to train on")),
        };
        let replay = self.replay(step);
        let outcome =
            timed(&mut times.train, || self.lab.pool.install(|| self.trainer.step_with(rollouts, &replay, &stopped)))?;
        if !offline {
            self.taught.extend(rollouts.iter().map(|r| Rollout { served_logprobs: None, ..r.clone() }));
            self.taught.drain(..self.taught.len().saturating_sub(TAUGHT_AMONG));
        }

        let samples = self.records.last().map_or(0, |r| r.samples) + rollouts.len() as u64;
        let mut record = StepRecord::new(step, samples, times);
        if let Some(judged) = &judged {
            let answers = judged.answers.iter().map(|(_, g)| &**g).collect();
            record.sampled(&Sampled { answers, scores: &judged.scores });
            self.folder.append(SAMPLES_FILE, &sample_lines(step, judged))?;
        }
        if let Some(fixed) = &fixed {
            record.data_reward_mean = Some(fixed.iter().map(|r| r.score).sum::<f64>() / fixed.len().max(1) as f64);
        }
        record.trained(&outcome, measured.as_ref(), offline);
        self.folder.append(METRICS_FILE, &format!("{}\n", json!(record)))?;
        self.trainer.adapter().write_gguf(&self.folder.adapter(), &[])?;
        Ok(record)
    }

    /// Answers that taught before, drawn anew for each step.
    fn replay(&self, step: u64) -> Vec<Rollout> {
        let drawn = (self.lab.plan.config.train.replay as usize).min(self.taught.len());
        let places = order(self.taught.len(), dice(self.seed, step, u64::MAX), 0, drawn);
        places.iter().filter_map(|i| self.taught.get(*i)).cloned().collect()
    }

    /// This step's part of the data set: each answer once, in random order, before any comes again.
    fn fixed(&self, step: u64) -> Option<Vec<Rollout>> {
        let dataset = self.lab.dataset.as_ref()?;
        let batch = self.lab.plan.config.train.batch as usize;
        let places = order(dataset.len(), self.seed, (step - 1) * batch as u64, batch);
        Some(places.iter().filter_map(|i| dataset.get(*i)).cloned().collect())
    }

    /// Answers of the present policy to this step's prompts, with their scores.
    fn judged(&mut self, step: u64, times: &mut Times) -> Result<Judged<'a>> {
        let sampled = timed(&mut times.sample, || self.sample(step))?;
        let pairs: Vec<_> = sampled.iter().map(|(asked, g, _)| (&asked.text, &**g)).collect();
        let reward = self.lab.reward.as_ref().ok_or_else(|| Error::arg("there is no reward"))?;
        let scores = timed(&mut times.reward, || self.lab.pool.install(|| reward.scores(&pairs, self.stop)))?;
        let thumbs = self.thumbs(step, &scores);
        let taught = sampled.iter().zip(thumbs.as_ref().unwrap_or(&scores));
        let rollouts = taught.map(|((_, g, served), score)| rollout(g, *score, served)).collect();
        let answers = sampled.into_iter().map(|(asked, g, _)| (asked, g)).collect();
        Ok(Judged { answers, scores, thumbs, rollouts })
    }

    /// What a rater makes of the scores, who compares them with those of the newest answers.
    fn thumbs(&mut self, step: u64, scores: &[f64]) -> Option<Vec<f64>> {
        let thumbs = self.lab.plan.thumbs?;
        self.scores.extend(scores);
        self.scores.drain(..self.scores.len().saturating_sub(AMONG));
        let bar = thumbs.bar(self.scores.iter().copied().collect());
        let of = |(index, score): (u64, &f64)| thumbs.of(*score, bar, dice(self.seed, step, u64::MAX - 1 - index));
        Some((0..).zip(scores).map(of).collect())
    }

    /// Answers of the present policy to this step's prompts.
    fn sample(&mut self, step: u64) -> Result<Vec<Answer<'a>>> {
        let lab = self.lab;
        let batch = lab.plan.config.train.batch as usize;
        let answers = lab.plan.answers as usize;
        let prompts = batch / answers;
        let places = order(lab.prompts.len(), self.seed, (step - 1) * prompts as u64, prompts);
        let each = places.iter().filter_map(|i| lab.prompts.get(*i));
        let asked: Vec<&Asked> = each.flat_map(|asked| std::iter::repeat_n(asked, answers)).collect();
        let requests = asked.iter().zip(0..).map(|(asked, index)| {
            let request = GenerateRequest {
                prompt: asked.tokens.clone(),
                sampling: Sampling {
                    temperature: lab.plan.temperature,
                    seed: Some(dice(self.seed, step, index)),
                    ..Sampling::default()
                },
                // Only at temperature 1 can they be compared with the trainer's.
                logprobs: (lab.plan.temperature == 1.0).then_some(0),
                ..GenerateRequest::default()
            };
            (GenerationId(format!("seed-{}-step-{step}-{index}", self.seed)), request)
        });
        let requests = requests.collect();
        let scheduler = self.serve(step)?;
        let streams = scheduler.submit_together(requests)?;
        let compared = lab.plan.temperature == 1.0;
        let end = |(asked, stream): (&'a Asked, &GenerationStream)| {
            let answer = end_of(stream, self.stop)?;
            let served = || stream.logprobs(0).into_iter().map(|t| t.chosen.logprob).collect();
            Ok((asked, answer, compared.then(served)))
        };
        asked.into_iter().zip(&streams).map(end).collect()
    }

    /// Serves the trainer's policy. Done at every step, changed or not, so that no cache of an earlier step affects
    /// rounding.
    fn serve(&mut self, step: u64) -> Result<&Scheduler> {
        let moved = self.trainer.batches() > 0;
        let source = if moved { Source::Adapter(self.folder.adapter()) } else { Source::Base };
        let weights = Weights { version: PolicyVersion(step), source };
        let scheduler = match self.scheduler.take() {
            Some(scheduler) => {
                scheduler.swap(weights)?;
                scheduler
            }
            None => {
                let tell = Box::new(|Finished { outcome, sink }: Finished| sink.finish(outcome));
                // Whoever waits for an answer is told, and the run ends.
                let failed = Box::new(|thread: &str| tracing::error!(thread, "a thread panicked"));
                Scheduler::start(self.lab.model.clone(), self.lab.threads, self.lab.options, weights, tell, failed)?
            }
        };
        Ok(self.scheduler.insert(scheduler))
    }
}

/// Runs `work` and adds its duration to `seconds`.
fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *seconds = started.elapsed().as_secs_f64();
    result
}

/// Waits for an answer's end.
fn end_of(stream: &GenerationStream, stop: &AtomicBool) -> Result<Arc<Generation>> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::closed("stopped while answers were sampled"));
        }
        match stream.next(Some(LOOK))? {
            Next::Event(Event::Done(generation)) => return Ok(generation),
            Next::Event(Event::Text(_)) | Next::Timeout => {}
            Next::Finished => return Err(Error::closed("an answer ended without a record")),
        }
    }
}

fn rollout(answer: &Generation, score: f64, served_logprobs: &Option<Vec<f32>>) -> Rollout {
    Rollout {
        prompt: answer.prompt.clone(),
        response: answer.response.clone(),
        temperature: answer.sampling.temperature,
        score,
        advantage_floor: None,
        served_logprobs: served_logprobs.clone(),
        version: Some(answer.policy_version),
        behavior_logprobs: None,
    }
}

fn sample_lines(step: u64, judged: &Judged) -> String {
    let mut lines = String::new();
    for (index, ((asked, g), score)) in judged.answers.iter().zip(&judged.scores).enumerate() {
        let mut line = json!({
            "step": step,
            "prompt": asked.text,
            "response": g.text,
            "score": score,
            "finish": g.finish,
            "prompt_tokens": g.prompt,
            "response_tokens": g.response,
            "seed": g.sampling.seed,
        });
        if let Some(thumb) = judged.thumbs.as_ref().and_then(|thumbs| thumbs.get(index)) {
            line["thumb"] = json!(thumb);
        }
        lines += &line.to_string();
        lines.push('\n');
    }
    lines
}

/// The seed of one answer's sampler: splitmix64 over the three numbers, so that neighbouring ones are unrelated.
fn dice(seed: u64, step: u64, index: u64) -> u64 {
    [step, index].iter().fold(mix(seed), |state, n| mix(state ^ mix(*n)))
}

fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_answers_of_a_run_or_its_neighbour_share_their_dice() {
        // As the sampler folds them: 32 bits are left, so a few of many may meet.
        let fold = |n: u64| (n ^ (n >> 32)) as u32;
        let all = (0..2).flat_map(|seed| (1..40).flat_map(move |step| (0..16).map(move |i| dice(seed, step, i))));
        let dice: Vec<u64> = all.collect();
        assert_eq!(dice.iter().collect::<HashSet<_>>().len(), dice.len());
        assert_eq!(dice.iter().map(|d| fold(*d)).collect::<HashSet<_>>().len(), dice.len());
    }
}
