//! What a user's words have taught, and the record of taking it back: which batches are replayed, and what becomes of
//! them. Never trains, and never keeps the user's name.

use serde::{Deserialize, Serialize};

use super::db::{Db, list};
use super::forget::{self, Forgotten};
use super::rows::{damaged, signed, unsigned};
use super::{Ledger, limits, marks, rows, samples, waiting, write};
use crate::error::{Error, Result};
use crate::types::*;

/// The key of the record in the table `meta`.
const UNLEARNING: &str = "unlearning";
/// The reason of a batch whose samples were trained on with a later one.
const MERGED: &str = "too little to learn from without a forgotten user: its samples went into a later batch";

/// Versions that learned from a forgotten user are being replaced. It says nothing of the user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unlearning {
    /// When it was asked for.
    pub asked: UnixMillis,
    /// The first version that learned from the user; all from it on are removed in the end.
    pub first: PolicyVersion,
    /// The newest version when it was asked for: the last that is removed.
    pub last: PolicyVersion,
    /// The newest ancestor of the active version that did not: parent of the version that is made.
    pub back: PolicyVersion,
    /// The version that the replay begins with: `back`, or an older one whose training state is still on disk.
    pub start: PolicyVersion,
    /// Rows of the recorded batches after `start`, in the order in which they were trained on.
    pub batches: Vec<u64>,
    /// Seconds that training on them took at first.
    pub seconds: f64,
    /// How it ended. Only files remain to be removed then.
    pub ended: Option<Unlearned>,
}

impl Unlearning {
    /// The numbers of the versions that are removed.
    pub fn removed(&self) -> std::ops::RangeInclusive<u64> {
        self.first.0..=self.last.0
    }
}

/// How an unlearning ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Unlearned {
    /// The version that was made, if any.
    pub version: Option<PolicyVersion>,
    /// What became of it, in one sentence.
    pub reason: String,
}

/// A recorded batch, as far as it can be replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedBatch {
    /// Its row.
    pub batch: u64,
    /// The version that was trained on it.
    pub version: PolicyVersion,
    /// Answers that it was made of.
    pub answers: u64,
    /// Of those, answers without words (`ledger.keep_days`), which can't be trained on again.
    pub wordless: u64,
}

/// A recorded answer with what was known of it when it was trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The answer and what users said of it.
    pub rated: RatedGeneration,
    /// The reward model's own score.
    pub model: Option<f64>,
    /// The score by the application's own function.
    pub external: Option<f64>,
}

/// What a replayed batch came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Replayed {
    /// It was trained on; its samples, scored anew.
    Trained(Vec<SampleRecord>),
    /// It taught nothing, for this reason.
    Dropped(String),
}

impl Ledger {
    /// The first version that learned from a user, by an answer for the user or by what the user said.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn first_taught_by(&self, user: &str) -> Result<Option<PolicyVersion>> {
        self.read(|db| first_taught_by(db, user))
    }

    /// The batches of these versions, in the order in which they were trained on; without what is the user's.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn batches_of(&self, versions: &[PolicyVersion]) -> Result<Vec<RecordedBatch>> {
        self.read(|db| batches_of(db, versions))
    }

    /// The unlearning under way.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn unlearning(&self) -> Result<Option<Unlearning>> {
        self.read(|db| match rows::meta(db, UNLEARNING)? {
            None => Ok(None),
            Some(json) => serde_json::from_str(&json).map(Some).map_err(|e| damaged(format!("an unlearning: {e}"))),
        })
    }

    /// Deletes a user's data as [`Ledger::forget`] does, samples of others' answers included that only this user had
    /// rated, and records that versions are to be replaced: all or nothing.
    ///
    /// # Errors
    /// As [`Ledger::forget`]; `Busy` if an unlearning is under way.
    pub fn forget_and_unlearn(&self, user: &str, begun: &Unlearning) -> Result<Forgotten> {
        let (begun, name) = (begun.clone(), user.to_owned());
        let first = self.deciding(move |db| {
            let user = name.as_str();
            if rows::meta(db, UNLEARNING)?.is_some() {
                return Err(Error::busy("a user is being unlearned already"));
            }
            let theirs = "DELETE FROM samples WHERE id IN (SELECT s.id FROM feedback f
                          JOIN samples s ON s.generation = f.generation AND s.batch = f.batch
                          WHERE f.user = ?1 AND NOT EXISTS (SELECT 1 FROM feedback o WHERE o.generation = f.generation
                          AND o.batch = f.batch AND o.user IS DISTINCT FROM ?1))";
            db.execute(theirs, [user])?;
            marks::set(db, UNLEARNING, &begun)
        });
        self.forget_with(user, first)
    }

    /// What the batches in these rows were made of, together: rated answers by age, then others.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn recorded(&self, batches: &[u64]) -> Result<Vec<Recorded>> {
        self.read(|db| recorded(db, batches))
    }

    /// What a batch was trained with, and whether it only set the mean.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn settings_of(&self, batch: u64) -> Result<(Option<serde_json::Value>, bool)> {
        self.read(|db| {
            let sql = "SELECT settings, settings IS NULL AND NOT EXISTS (SELECT 1 FROM samples WHERE batch = ?1)
                       FROM batches WHERE id = ?1";
            let (settings, noted): (Option<String>, bool) =
                db.one(sql, [signed(batch)], |row| Ok((row.maybe(0)?, row.get(1)?)))?;
            let read = |json: String| serde_json::from_str(&json).map_err(|e| damaged(format!("a batch: {e}")));
            Ok((settings.map(read).transpose()?, noted))
        })
    }

    /// Records what a batch came to that was replayed together with earlier ones which had been too small.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn set_replayed(&self, batch: u64, merged: &[u64], replayed: Replayed) -> Result<()> {
        let merged = merged.to_vec();
        self.decide(move |db| set_replayed(db, batch, &merged, &replayed))
    }

    /// Ends an unlearning: records the version that was made, if any, gives it the batches, lets the feedback of the
    /// batches `wait` wait again, and leaves the record until the files are removed.
    ///
    /// # Errors
    /// As [`Ledger::commit_version`].
    pub fn end_unlearning(&self, ended: &Unlearning, made: Option<&VersionInfo>, wait: &[u64]) -> Result<()> {
        let (ended, made, wait) = (ended.clone(), made.cloned(), wait.to_vec());
        let work = move |db: &Db| {
            waiting::counted(db, || {
                for batch in &wait {
                    db.execute("UPDATE feedback SET batch = NULL WHERE batch = ?1", [signed(*batch)])?;
                    drop_batch(db, *batch, "too little to learn from without a forgotten user: its ratings wait")?;
                }
                Ok(())
            })?;
            if let Some(v) = &made {
                write::insert_version(db, v)?;
                let give = "UPDATE batches SET version = ?2 WHERE id = ?1 AND version > ?3";
                for batch in &ended.batches {
                    db.execute(give, (signed(*batch), signed(v.version.0), signed(ended.back.0)))?;
                }
                if v.active {
                    write::activate(db, v.version)?;
                }
            }
            marks::set(db, UNLEARNING, &ended)
        };
        self.decide(work)
    }

    /// Deletes the record of an unlearning whose files are removed.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn clear_unlearning(&self) -> Result<()> {
        let work = |db: &Db| {
            db.execute("DELETE FROM meta WHERE key = ?1", [UNLEARNING])?;
            Ok(())
        };
        self.decide(work)
    }
}

fn first_taught_by(db: &Db, user: &str) -> Result<Option<PolicyVersion>> {
    let theirs = forget::THEIRS;
    let sql = format!(
        "WITH theirs AS ({theirs}) SELECT min(b.version) FROM batches b WHERE b.id IN (
         SELECT batch FROM samples WHERE generation IN (SELECT seq FROM theirs)
         UNION SELECT batch FROM feedback
         WHERE batch IS NOT NULL AND (user = ?1 OR generation IN (SELECT seq FROM theirs)))"
    );
    let (rollout, end) = forget::rollouts();
    let first: Option<i64> = db.one(&sql, (user, rollout, end), |row| row.maybe(0))?;
    Ok(first.map(|v| PolicyVersion(v.cast_unsigned())))
}

fn batches_of(db: &Db, versions: &[PolicyVersion]) -> Result<Vec<RecordedBatch>> {
    let sql = "SELECT b.id, count(DISTINCT s.generation), count(DISTINCT CASE WHEN length(g.prompt) = 0 THEN g.seq END)
               FROM batches b LEFT JOIN samples s ON s.batch = b.id LEFT JOIN generations g ON g.seq = s.generation
               WHERE b.version = ?1 GROUP BY b.id ORDER BY b.id";
    let mut all = Vec::new();
    for version in versions {
        all.extend(db.all(sql, [signed(version.0)], |row| {
            let (batch, answers, wordless) = (unsigned(row, 0)?, unsigned(row, 1)?, unsigned(row, 2)?);
            Ok(RecordedBatch { batch, version: *version, answers, wordless })
        })?);
    }
    Ok(all)
}

fn recorded(db: &Db, batches: &[u64]) -> Result<Vec<Recorded>> {
    let batches = list(&batches.iter().map(|batch| signed(*batch)).collect::<Vec<_>>());
    // Batches that only set the mean have no samples.
    let among = "WITH b AS (SELECT value AS id FROM json_each(?1))
                 SELECT generation, min(id) FROM samples WHERE batch IN (SELECT id FROM b) GROUP BY generation
                 UNION ALL SELECT generation, 0 FROM feedback WHERE batch IN (
                 SELECT x.id FROM b JOIN batches x ON x.id = b.id WHERE x.settings IS NULL
                 AND NOT EXISTS (SELECT 1 FROM samples s WHERE s.batch = x.id)) GROUP BY generation ORDER BY 2, 1";
    let answers: Vec<i64> = db.all(among, [&batches], |row| row.get(0))?;
    let said = "SELECT id FROM feedback WHERE generation = ?1 AND batch IN (SELECT value FROM json_each(?2))
                ORDER BY id";
    let scored = "SELECT terms FROM samples WHERE generation = ?1 AND kind = 'answer'
                  AND batch IN (SELECT value FROM json_each(?2)) ORDER BY id DESC LIMIT 1";
    let (mut heard, mut unheard) = (Vec::new(), Vec::new());
    for answer in answers {
        let ids: Vec<i64> = db.all(said, (answer, &batches), |row| row.get(0))?;
        let terms = db.first(scored, (answer, &batches), |row| row.get::<String>(0))?;
        let terms = terms.unwrap_or_else(|| "[]".into());
        let terms: Vec<Term> =
            serde_json::from_str(&terms).map_err(|e| damaged(format!("the terms of a sample: {e}")))?;
        let raw = |name: &str| terms.iter().find(|term| term.name == name).and_then(|term| term.raw);
        let (model, external) = (raw("model"), raw("external"));
        let unrated = ids.is_empty();
        let rated = limits::rated(db, answer, ids)?;
        let recorded = Recorded { rated, model, external };
        if unrated {
            unheard.push(recorded);
        } else {
            heard.push((answer, recorded));
        }
    }
    heard.sort_by_key(|(answer, _)| *answer);
    Ok(heard.into_iter().map(|(_, recorded)| recorded).chain(unheard).collect())
}

fn set_replayed(db: &Db, batch: u64, merged: &[u64], replayed: &Replayed) -> Result<()> {
    for earlier in merged {
        let bounds = (signed(*earlier), signed(batch));
        db.execute("UPDATE feedback SET batch = ?2 WHERE batch = ?1", bounds)?;
        drop_batch(db, *earlier, MERGED)?;
    }
    match replayed {
        Replayed::Trained(records) => {
            db.execute("DELETE FROM samples WHERE batch = ?1", [signed(batch)])?;
            samples::insert_samples(db, signed(batch), records)
        }
        Replayed::Dropped(reason) => drop_batch(db, batch, reason),
    }
}

/// A batch that teaches no version any more, nor the critic.
fn drop_batch(db: &Db, batch: u64, reason: &str) -> Result<()> {
    db.execute("DELETE FROM samples WHERE batch = ?1", [signed(batch)])?;
    db.execute("UPDATE batches SET version = NULL, reason = ?2 WHERE id = ?1", (signed(batch), reason))?;
    Ok(())
}
