//! What can be trained on beside feedback, and what was: unrated answers, prompts, samples. Never marks feedback.

use sha2::{Digest, Sha256};

use super::db::Db;
use super::rows::{AskedPrompt, StoredSample, Which, damaged, from_blob, generation, signed, unsigned};
use crate::error::{Error, Result};
use crate::ids::GenerationKind;
use crate::types::*;

/// Rows examined per wanted answer: bounds the work where most are rated or used.
const LOOKED_AT: usize = 16;

pub(super) fn unrated(db: &Db, max: usize, since: PolicyVersion) -> Result<Vec<RatedGeneration>> {
    let sql = "SELECT seq FROM (SELECT seq, policy_version, response FROM generations ORDER BY seq DESC LIMIT ?1) g
               WHERE policy_version >= ?2 AND length(response) > 0
               AND NOT EXISTS (SELECT 1 FROM feedback f WHERE f.generation = g.seq)
               AND NOT EXISTS (SELECT 1 FROM samples s WHERE s.generation = g.seq)
               ORDER BY seq DESC LIMIT ?3";
    let bounds = (signed((max * LOOKED_AT) as u64), signed(since.0), signed(max as u64));
    let answers: Vec<i64> = db.all(sql, bounds, |row| row.get(0))?;
    let mut found = Vec::with_capacity(answers.len());
    for answer in answers {
        let generation = generation(db, Which::Row(answer))?
            .ok_or_else(|| damaged(format!("generation row {answer} is missing")))?;
        let (feedback_ids, signals) = (Vec::new(), Vec::new());
        found.push(RatedGeneration { feedback_ids, generation, rating: None, signals, correction: None });
    }
    Ok(found)
}

pub(super) fn recent_prompts(db: &Db, max: usize) -> Result<Vec<AskedPrompt>> {
    // Of the users who asked the same, the last.
    let sql = "SELECT prompt, user, id FROM (
                   SELECT seq, id, prompt, user, row_number() OVER (PARTITION BY prompt ORDER BY seq DESC) AS place
                   FROM (SELECT seq, id, prompt, user FROM generations
                         WHERE length(prompt) > 0 AND id NOT LIKE ?3 || '%' AND id NOT LIKE ?4 || '%'
                         ORDER BY seq DESC LIMIT ?1) AS newest) AS placed
               WHERE place = 1 ORDER BY seq DESC LIMIT ?2";
    let (rollouts, imports) = (GenerationKind::Rollout.prefix(), GenerationKind::Import.prefix());
    let bounds = (signed((max * LOOKED_AT) as u64), signed(max as u64), rollouts, imports);
    db.all(sql, bounds, |row| {
        let (tokens, origin) = (from_blob(row.bytes(0)?)?, Some(GenerationId(row.get(2)?)));
        Ok(AskedPrompt { tokens, user: row.maybe(1)?, origin })
    })
}

pub(super) fn insert_samples(db: &Db, batch: i64, samples: &[SampleRecord]) -> Result<()> {
    let insert = "INSERT INTO samples (batch, generation, kind, score, terms)
                  SELECT ?1, seq, ?3, ?4, ?5 FROM generations WHERE id = ?2";
    for sample in samples {
        let json = |e: serde_json::Error| Error::arg(format!("a sample's terms: {e}"));
        let terms = serde_json::to_string(&sample.score.terms).map_err(json)?;
        // An answer may have been forgotten while it was trained on; then nothing of it is recorded.
        let kind = match sample.kind {
            SampleKind::Answer => "answer",
            SampleKind::Correction => "correction",
        };
        db.execute(insert, (batch, &sample.generation_id.0, kind, sample.score.score, terms))?;
    }
    Ok(())
}

pub(super) fn samples_of(db: &Db, id: &GenerationId) -> Result<Vec<StoredSample>> {
    let sql = "SELECT b.version, s.kind, s.score, s.terms FROM samples s JOIN batches b ON b.id = s.batch
               JOIN generations g ON g.seq = s.generation WHERE g.id = ?1 ORDER BY s.id";
    db.all(sql, [&id.0], |row| {
        let version: Option<i64> = row.maybe(0)?;
        let (kind, terms): (String, String) = (row.get(1)?, row.get(3)?);
        let terms = serde_json::from_str(&terms).map_err(|e| damaged(format!("terms of a sample: {e}")))?;
        Ok(StoredSample {
            version: version.map(|_| unsigned(row, 0).map(PolicyVersion)).transpose()?,
            kind: if kind == "correction" { SampleKind::Correction } else { SampleKind::Answer },
            score: Score { score: row.get(2)?, terms },
        })
    })
}

/// Number of newest samples from which answers are drawn.
const TAUGHT_AMONG: i64 = 4096;

/// Which answers are drawn follows from their ids and `draw` alone: a replay without a user's samples draws as if there
/// had never been any.
pub(super) fn taught(db: &Db, max: usize, draw: u64, before: Option<u64>) -> Result<Vec<(Generation, f64)>> {
    let sql = "SELECT s.generation, s.score, g.id FROM (SELECT id, batch, generation, score, kind FROM samples
               WHERE batch < ?2 ORDER BY batch DESC, id DESC LIMIT ?1) s JOIN generations g ON g.seq = s.generation
               WHERE s.kind = 'answer' ORDER BY s.batch DESC, s.id DESC";
    let bounds = (TAUGHT_AMONG, before.map_or(i64::MAX, signed));
    let among = db.all(sql, bounds, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut among: Vec<_> = among.into_iter().enumerate().collect();
    let dice = |id: &String| Sha256::new().chain_update(draw.to_le_bytes()).chain_update(id).finalize();
    among.sort_by_cached_key(|(_, (_, _, id))| dice(id));
    among.truncate(max);
    // In the order of the record: ids are chance, and sums must not follow from them.
    among.sort_unstable_by_key(|(place, _)| *place);
    let with_answer = |(_, (row, score, _)): (usize, (i64, f64, String))| {
        let found = generation(db, Which::Row(row))?;
        Ok((found.ok_or_else(|| damaged(format!("generation row {row} is missing")))?, score))
    };
    among.into_iter().map(with_answer).collect()
}
