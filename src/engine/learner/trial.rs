//! Carries out the verdict on a candidate: examines it before anyone sees it, and tries it on a share of the users.
//! Never trains.

use std::collections::HashMap;

use super::*;
use crate::config::{Promotion, PromotionConfig, Undecided};
use crate::engine::examiner::Subject;
use crate::engine::routes::Split;
use crate::gate::{Arm, Examination, Fate, Outcome, Plan, Standing, Trial, TrialRecord, examine};
use crate::policy::Lora;
use crate::scheduler::Weights;
use crate::trainer::ADAPTER_FILE;

/// Most rows read from the ledger at a time; the rest is read the next time.
pub(super) const ROWS: usize = 10_000;
/// How far back `gate.users` looks for users who rate, in milliseconds.
const MONTH: u64 = 30 * 24 * 3600 * 1000;

/// The evidence for a verdict, as it is stored with it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct VerdictRecord {
    /// The reason, in one sentence.
    pub reason: String,
    /// The examination of candidate and parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examination: Option<Examination>,
    /// Duration of the examination, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The users' ratings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialRecord>,
}

impl VerdictRecord {
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads the evidence of a stored verdict; what another build wrote differently is ignored.
    pub(super) fn of(verdict: &StoredVerdict) -> VerdictRecord {
        serde_json::from_value(verdict.record.clone()).unwrap_or_default()
    }
}

/// A candidate that is on trial.
pub(super) struct OnTrial {
    verdict: u64,
    pub(super) candidate: PolicyVersion,
    pub(super) parent: PolicyVersion,
    started: UnixMillis,
    record: VerdictRecord,
    trial: Trial,
    /// The last rows of the ledger, of feedback and of answers, that were counted.
    heard: (u64, u64),
    /// Number of ratings of each user that counted.
    users: HashMap<String, u32>,
}

/// Serves the candidate of a trial that was running when the engine was closed, to those who had it: before the first
/// request, and before the trainer is ready to go on with the trial. Returns the candidate.
pub(in crate::engine) fn resume(
    gate: &PromotionConfig,
    active: PolicyVersion,
    (ledger, store, scheduler, routes): (&Ledger, &VersionStore, &Scheduler, &Routes),
) -> Option<PolicyVersion> {
    let served = || -> Result<Option<PolicyVersion>> {
        let Some(verdict) = ledger.trial()?.filter(|verdict| verdict.parent == active) else { return Ok(None) };
        let Some(candidate) = verdict.version else { return Ok(None) };
        let known = ledger.routes_of(candidate)?;
        scheduler.serve_beside(weights_of(store, candidate)?)?;
        routes.begin(Split { candidate, share: gate.shares[0] }, &known);
        Ok(Some(candidate))
    };
    served().unwrap_or_else(|error| {
        tracing::error!(%error, "the version on trial is not served");
        None
    })
}

impl Worker {
    /// Has the candidate, whose files are in `folder`, and its parent answer the same prompts. `None` if the settings
    /// ask for no examination. So many `batches` may take it as many times as far from its parent as one.
    pub(super) fn examine(
        &self,
        candidate: PolicyVersion,
        folder: &Path,
        batches: usize,
    ) -> Result<Option<(Examination, f64)>> {
        let Some(Ready { trainer: Some(trainer), judge, examiner: Some(examiner), .. }) = &self.ready else {
            return Ok(None);
        };
        let adapter = &Lora::read_gguf(&folder.join(ADAPTER_FILE), trainer.decoder())?;
        let started = Instant::now();
        let parent = match self.active {
            PolicyVersion::INITIAL => None,
            active => Some(Lora::read_gguf(&self.store.path(active).join(ADAPTER_FILE), trainer.decoder())?),
        };
        self.scheduler
            .serve_beside(Weights { version: candidate, source: Source::Adapter(folder.join(ADAPTER_FILE)) })?;
        let subject = Subject {
            scheduler: &self.scheduler,
            ledger: &self.ledger,
            trainer,
            judge,
            parent,
            adapter,
            candidate,
            stop: &self.shared.interrupt,
        };
        let measurements = examiner.measurements(&subject);
        self.scheduler.leave(candidate)?;
        let mut limits = examiner.limits();
        limits.kl_parent *= batches as f64;
        let examination = examine(&measurements?, &limits);
        let seconds = started.elapsed().as_secs_f64();
        let Examination { outcome, reason, .. } = &examination;
        tracing::info!(candidate = candidate.0, ?outcome, reason, seconds, "examined");
        Ok(Some((examination, seconds)))
    }

    /// Decides what happens to a candidate that was not refused.
    pub(super) fn ruling(&self, examination: Option<&Examination>) -> Result<(Ruling, String)> {
        let gate = &self.config.gate;
        let passed = examination.is_some_and(|e| e.outcome == Outcome::Passed);
        let said = examination.map_or("it was not examined".to_owned(), |e| e.reason.clone());
        let enough = (gate.users as usize).max(1);
        let few = || Ok::<_, Error>(self.ledger.raters(unix_millis().saturating_sub(MONTH), enough)? < enough);
        let (ruling, why) = match gate.mode {
            Promotion::Propose => (Ruling::Proposed, "a person decides (gate.mode)"),
            _ if passed => return Ok((Ruling::Promoted, said)),
            Promotion::Serve => (Ruling::Promoted, "it serves all the same (gate.mode)"),
            Promotion::Auto if few()? => {
                (Ruling::Promoted, "it serves, as too few users rate for a trial (gate.users)")
            }
            Promotion::Auto | Promotion::Canary => (Ruling::Trial, "users decide"),
        };
        Ok((ruling, format!("{said}; {why}")))
    }

    fn plan(&self) -> Plan {
        let gate = &self.config.gate;
        Plan {
            shares: gate.shares.to_vec(),
            margin: gate.trial_margin,
            rate_margin: gate.rate_margin,
            alpha: gate.alpha,
            most_ratings: gate.ratings.into(),
            most_hours: gate.hours.into(),
            ..Plan::default()
        }
    }

    /// Serves a candidate beside its parent, as its verdict says.
    pub(super) fn begin_trial(&mut self, verdict: &StoredVerdict) -> Result<()> {
        let Some(candidate) = verdict.version else { return Err(Error::train("a trial without a version")) };
        self.scheduler.serve_beside(weights_of(&self.store, candidate)?)?;
        let trial = OnTrial {
            verdict: verdict.id,
            candidate,
            parent: verdict.parent,
            // A clock that was ahead then must not keep what is said now from counting.
            started: verdict.created.min(unix_millis()),
            record: VerdictRecord::of(verdict),
            trial: Trial::new(self.plan()),
            heard: (0, 0),
            users: HashMap::new(),
        };
        let share = trial.trial.share();
        self.routes.begin(Split { candidate, share }, &self.ledger.routes_of(candidate)?);
        tracing::info!(candidate = candidate.0, parent = verdict.parent.0, share, "on trial");
        self.tell(|| News::TrialStarted { version: candidate, parent: verdict.parent, share });
        self.trial = Some(trial);
        self.show_trial();
        Ok(())
    }

    /// Resumes a trial that was running when the engine was closed.
    pub(super) fn resume_trial(&mut self) {
        let begun = self.ledger.trial().and_then(|open| match open {
            Some(verdict) if verdict.parent == self.active => self.begin_trial(&verdict),
            // It was chosen by a person, and the engine was ended before that was on record.
            Some(verdict) if verdict.version == Some(self.active) => {
                self.settle(&verdict, Ruling::Promoted, "a person promoted it")
            }
            Some(verdict) => self.settle(&verdict, Ruling::Refused, "another version was activated meanwhile"),
            None => Ok(()),
        });
        // From the start of the engine on it was served for those who had it before.
        if let Some(candidate) = self.resumed.take() {
            let left = self.scheduler.leave(candidate);
            left.unwrap_or_else(|error| tracing::error!(%error, "a version on trial stays"));
        }
        if let Err(error) = begun {
            self.routes.end();
            tracing::error!(%error, "the trial can't go on");
            if let Ok(Some(verdict)) = self.ledger.trial() {
                let done = self.settle(&verdict, Ruling::Refused, &format!("its trial could not go on: {error}"));
                done.unwrap_or_else(|error| tracing::error!(%error, "the trial's end is not on record"));
            }
        }
    }

    pub(super) fn settle(&self, verdict: &StoredVerdict, ruling: Ruling, reason: &str) -> Result<()> {
        let record = VerdictRecord { reason: reason.into(), ..VerdictRecord::of(verdict) };
        self.ledger.set_verdict(verdict.id, ruling, record.json())
    }

    /// Counts new feedback, and ends the trial if that decides it.
    pub(super) fn look_at_trial(&mut self) -> Result<()> {
        let gate = &self.config.gate;
        let (settle, most) = (u64::from(gate.settle) * 1000, gate.user_ratings);
        let Some(on) = &mut self.trial else { return Ok(()) };
        let (versions, now) = ((on.parent, on.candidate), unix_millis());
        let (share, candidate) = (on.trial.share(), on.candidate);
        let arm = |version| if version == candidate { Arm::Candidate } else { Arm::Parent };
        for said in self.ledger.ratings_of(&[on.parent, on.candidate], on.started, on.heard.0, ROWS)? {
            on.heard.0 = said.id;
            // One user must not outweigh many. Anonymous users can't be told apart.
            if let Some(user) = said.user {
                let count = on.users.entry(user).or_default();
                *count += 1;
                if *count > most {
                    continue;
                }
            }
            on.trial.rating(arm(said.version), said.rating);
        }
        let times = (on.started, now.saturating_sub(settle));
        for answer in self.ledger.answers_of(versions, times, on.heard.1, ROWS)? {
            on.heard.1 = answer.id;
            let fate = Fate { rated: answer.rated, regenerated: answer.regenerated, corrected: answer.corrected };
            on.trial.answer(arm(answer.version), fate);
        }
        let hours = now.saturating_sub(on.started) as f64 / 3.6e6;
        let record = on.trial.look(hours);
        let (standing, reason) = (record.standing, record.reason.clone());
        let changed = on.record.trial.as_ref() != Some(&record);
        on.record.trial = Some(record);
        if standing == Standing::Open {
            let now = on.trial.share();
            if now != share {
                self.routes.widen(Split { candidate, share: now });
                tracing::info!(candidate = candidate.0, share = now, "trial goes on with more users");
                self.tell(|| News::TrialAdvanced { version: candidate, share: now });
            }
            if changed && let Some(on) = &self.trial {
                self.ledger.set_verdict(on.verdict, Ruling::Trial, on.record.json())?;
                self.show_trial();
            }
            return Ok(());
        }
        let kept = self.config.gate.undecided == Undecided::Candidate;
        let promoted = standing == Standing::Better || (standing == Standing::Ended && kept);
        self.end_trial(if promoted { Ruling::Promoted } else { Ruling::Refused }, reason)
    }

    /// Ends the trial, if there is one: the candidate replaces its parent, or is dropped.
    pub(super) fn end_trial(&mut self, ruling: Ruling, reason: String) -> Result<()> {
        let Some(on) = self.trial.take() else { return Ok(()) };
        let record = VerdictRecord { reason: reason.clone(), ..on.record };
        let ended = match ruling {
            Ruling::Promoted => self.serve_as(on.candidate, None, Decides::Verdict(on.verdict, ruling, record.json())),
            _ => self.ledger.set_verdict(on.verdict, ruling, record.json()),
        };
        self.routes.end();
        self.scheduler.leave(on.candidate)?;
        self.show_trial();
        if let Err(error) = ended {
            if ruling != Ruling::Promoted {
                return Err(error);
            }
            let reason = format!("it could not be served: {error}");
            self.ledger.set_verdict(on.verdict, Ruling::Refused, VerdictRecord { reason, ..record }.json())?;
            return Err(error);
        }
        tracing::info!(candidate = on.candidate.0, ?ruling, reason, "trial ended");
        match ruling {
            Ruling::Promoted => {
                self.tell(|| News::VersionPublished { version: on.candidate, parent: on.parent });
                self.begin_watch()?;
            }
            _ => {
                self.shared.status().refused += 1;
                self.tell(|| News::VersionRefused { version: Some(on.candidate), reason });
            }
        }
        Ok(())
    }

    /// A person chose the version to serve, which ends a trial.
    pub(super) fn trial_overruled(&mut self, version: PolicyVersion) -> Result<()> {
        let Some(on) = self.trial.take_if(|on| on.candidate != version) else {
            // Promoting the candidate by hand decides its trial.
            if let Some(on) = self.trial.take() {
                self.routes.end();
                self.scheduler.leave(on.candidate)?;
                self.show_trial();
                let record = VerdictRecord { reason: "a person promoted it".into(), ..on.record };
                self.ledger.set_verdict(on.verdict, Ruling::Promoted, record.json())?;
            }
            return Ok(());
        };
        self.routes.end();
        self.scheduler.leave(on.candidate)?;
        self.show_trial();
        let record = VerdictRecord { reason: format!("a person chose version {version}"), ..on.record };
        self.ledger.set_verdict(on.verdict, Ruling::Refused, record.json())
    }

    fn show_trial(&self) {
        let shown = self.trial.as_ref().map(|on| TrialStatus {
            version: on.candidate,
            parent: on.parent,
            started: on.started,
            share: on.trial.share(),
            record: on.record.trial.clone(),
        });
        self.shared.status().trial = shown;
    }
}
