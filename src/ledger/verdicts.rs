//! Verdicts on candidates: the measurements, the state of a trial, its end; and the users' ratings of two versions,
//! which decide. Never decides itself.

use std::collections::BTreeMap;

use super::Ledger;
use super::db::{Db, Row, list};
use super::rows::{damaged, signed, unsigned};
use super::{routes, rows};
use crate::error::{Error, Result};
use crate::ids::GenerationKind;
use crate::system::unix_millis;
use crate::types::{PolicyVersion, Ruling, StoredVerdict, TrialAnswer, TrialRating, UnixMillis, VersionInfo};

const COLUMNS: &str = "id, version, parent, ruling, created, decided, record";

/// The words of the column `ruling`.
const WORDS: [(Ruling, &str); 6] = [
    (Ruling::Promoted, "promoted"),
    (Ruling::Refused, "refused"),
    (Ruling::Trial, "trial"),
    (Ruling::Proposed, "proposed"),
    (Ruling::RolledBack, "rolled_back"),
    (Ruling::Unlearned, "unlearned"),
];

fn word(ruling: Ruling) -> &'static str {
    WORDS.iter().find(|(known, _)| *known == ruling).map_or("", |(_, word)| word)
}

/// The time of the decision, if the ruling is one.
fn decided(ruling: Ruling) -> Option<i64> {
    (!matches!(ruling, Ruling::Trial | Ruling::Proposed)).then(|| signed(unix_millis()))
}

fn ruling(row: &Row<'_>, column: usize) -> Result<Ruling> {
    let ruling: String = row.get(column)?;
    let known = WORDS.iter().find(|(_, word)| *word == ruling).map(|(known, _)| *known);
    known.ok_or_else(|| damaged(format!("a verdict's ruling is {ruling:?}")))
}

fn verdict(row: &Row<'_>) -> Result<StoredVerdict> {
    let record: String = row.get(6)?;
    let version = |column| -> Result<Option<PolicyVersion>> {
        Ok(row.maybe::<i64>(column)?.map(|v| PolicyVersion(v.cast_unsigned())))
    };
    Ok(StoredVerdict {
        id: unsigned(row, 0)?,
        version: version(1)?,
        parent: version(2)?.unwrap_or_default(),
        ruling: ruling(row, 3)?,
        created: unsigned(row, 4)?,
        decided: row.maybe(5)?.map(i64::cast_unsigned),
        record: serde_json::from_str(&record).map_err(|e| damaged(format!("a verdict's record: {e}")))?,
    })
}

/// Number of verdicts by what they rule; each ruling is there.
pub(super) fn counts(db: &Db) -> Result<BTreeMap<&'static str, u64>> {
    let mut found: BTreeMap<_, _> = WORDS.iter().map(|(_, word)| (*word, 0)).collect();
    db.each("SELECT ruling, count(*) FROM verdicts GROUP BY ruling", (), |row| {
        let (ruling, count): (String, u64) = (row.get(0)?, unsigned(row, 1)?);
        if let Some((_, seen)) = found.iter_mut().find(|(word, _)| **word == ruling) {
            *seen = count;
        }
        Ok(true)
    })?;
    Ok(found)
}

impl Ledger {
    /// The newest version that may serve: none that was refused, is on trial or waits for a person.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn newest_servable(&self) -> Result<PolicyVersion> {
        self.read(newest_servable)
    }

    /// Records a verdict and returns its number. `version` is `None` for a candidate that never became one.
    ///
    /// # Errors
    /// `Io`, `Closed`.
    pub fn add_verdict(
        &self,
        version: Option<PolicyVersion>,
        parent: PolicyVersion,
        ruling: Ruling,
        record: serde_json::Value,
    ) -> Result<u64> {
        self.decide(move |db| insert(db, version, parent, ruling, &record))
    }

    /// Updates a verdict.
    ///
    /// # Errors
    /// `Arg` for an unknown number, `Io`, `Closed`.
    pub fn set_verdict(&self, id: u64, ruling: Ruling, record: serde_json::Value) -> Result<()> {
        self.decide(move |db| update(db, id, ruling, &record))
    }

    /// The verdict on a version, if there is one.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn verdict_of(&self, version: PolicyVersion) -> Result<Option<StoredVerdict>> {
        self.read(|db| of(db, version))
    }

    /// Versions that wait for a person's decision, the oldest first.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn proposals(&self) -> Result<Vec<PolicyVersion>> {
        self.read(|db| {
            let waiting = "SELECT version FROM verdicts
                           WHERE decided IS NULL AND ruling = ?1 AND version IS NOT NULL ORDER BY version";
            db.all(waiting, [word(Ruling::Proposed)], |row| Ok(PolicyVersion(unsigned(row, 0)?)))
        })
    }

    /// All versions, oldest first; the first is the initial model. Errors as [`Ledger::generation`].
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        self.read(versions)
    }

    /// The newest verdicts, at most `max`, the newest first, including those on candidates that never became a version.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn verdicts(&self, max: usize) -> Result<Vec<StoredVerdict>> {
        self.read(|db| newest(db, max))
    }

    /// The running trial.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn trial(&self) -> Result<Option<StoredVerdict>> {
        self.read(trial)
    }

    /// Versions that nobody has decided about: on trial, or proposed to a person.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn open_candidates(&self) -> Result<Vec<PolicyVersion>> {
        self.read(open_candidates)
    }

    /// Ratings that count, of answers of these versions created since a given time, in order; at most `max`, after row
    /// `after`. Answers to requests that named their version are left out: users don't get those by themselves.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn ratings_of(
        &self,
        versions: &[PolicyVersion],
        since: UnixMillis,
        after: u64,
        max: usize,
    ) -> Result<Vec<TrialRating>> {
        self.read(|db| ratings(db, versions, since, after, max))
    }

    /// What users did with answers to requests, of either version, created between two times; at most `max`, after row
    /// `after`. Left out as in [`Ledger::ratings_of`].
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn answers_of(
        &self,
        versions: (PolicyVersion, PolicyVersion),
        times: (UnixMillis, UnixMillis),
        after: u64,
        max: usize,
    ) -> Result<Vec<TrialAnswer>> {
        self.read(|db| answers(db, versions, times, after, max))
    }

    /// Number of users who rated since a given time; counts up to `max`.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn raters(&self, since: UnixMillis, max: usize) -> Result<usize> {
        self.read(|db| raters(db, since, max))
    }
}

/// Adds a verdict and returns its number. `Ruling::Trial` and `Ruling::Proposed` leave it undecided.
pub(super) fn insert(
    db: &Db,
    version: Option<PolicyVersion>,
    parent: PolicyVersion,
    ruling: Ruling,
    record: &serde_json::Value,
) -> Result<u64> {
    db.note_versions();
    let sql = "INSERT INTO verdicts (version, parent, ruling, created, decided, record)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING id";
    let (version, now) = (version.map(|v| signed(v.0)), signed(unix_millis()));
    let values = (version, signed(parent.0), word(ruling), now, decided(ruling), record.to_string());
    db.one(sql, values, |row| unsigned(row, 0))
}

/// Updates a verdict.
pub(super) fn update(db: &Db, id: u64, ruling: Ruling, record: &serde_json::Value) -> Result<()> {
    let sql = "UPDATE verdicts SET ruling = ?2, decided = ?3, record = ?4 WHERE id = ?1";
    if db.execute(sql, (signed(id), word(ruling), decided(ruling), record.to_string()))? != 1 {
        return Err(Error::unknown_id(format!("verdict {id} is not on record")));
    }
    db.note_versions();
    if decided(ruling).is_some() { routes::end(db, id) } else { Ok(()) }
}

/// All versions, oldest first, with what was decided last about each.
pub(super) fn versions(db: &Db) -> Result<Vec<VersionInfo>> {
    let sql = "SELECT version, ruling FROM verdicts WHERE version IS NOT NULL ORDER BY id";
    let rulings = db.all(sql, (), |row| Ok((PolicyVersion(unsigned(row, 0)?), ruling(row, 1)?)))?;
    let rulings: BTreeMap<PolicyVersion, Ruling> = rulings.into_iter().collect();
    let mut versions = rows::versions(db)?;
    for info in &mut versions {
        info.ruling = rulings.get(&info.version).copied();
    }
    Ok(versions)
}

/// Decides proposals by a person's choice, before it is the active version.
pub(super) fn chosen(db: &Db, version: PolicyVersion) -> Result<()> {
    let serves = rows::active(db)? == version;
    let sql = format!("SELECT {COLUMNS} FROM verdicts WHERE decided IS NULL AND ruling = ?1 ORDER BY id");
    let proposed = db.all(&sql, [word(Ruling::Proposed)], verdict)?;
    let met = proposed.into_iter().filter(|proposed| serves || proposed.version == Some(version));
    for StoredVerdict { id, mut record, .. } in met {
        let (ruling, reason) = match serves {
            true => (Ruling::Refused, format!("a person stayed with version {version}")),
            false => (Ruling::Promoted, "a person promoted it".into()),
        };
        record["reason"] = reason.into();
        update(db, id, ruling, &record)?;
    }
    Ok(())
}

/// The newest verdict on a version.
pub(super) fn of(db: &Db, version: PolicyVersion) -> Result<Option<StoredVerdict>> {
    let sql = format!("SELECT {COLUMNS} FROM verdicts WHERE version = ?1 ORDER BY id DESC LIMIT 1");
    db.first(&sql, [signed(version.0)], verdict)
}

/// The newest verdicts, at most `max`, the newest first.
pub(super) fn newest(db: &Db, max: usize) -> Result<Vec<StoredVerdict>> {
    let sql = format!("SELECT {COLUMNS} FROM verdicts ORDER BY id DESC LIMIT ?1");
    db.all(&sql, [signed(max as u64)], verdict)
}

/// The running trial. There is at most one.
pub(super) fn trial(db: &Db) -> Result<Option<StoredVerdict>> {
    let sql = format!("SELECT {COLUMNS} FROM verdicts WHERE ruling = ?1 ORDER BY id DESC LIMIT 1");
    db.first(&sql, [word(Ruling::Trial)], verdict)
}

/// Versions whose verdict is open.
pub(super) fn open_candidates(db: &Db) -> Result<Vec<PolicyVersion>> {
    let sql = "SELECT version FROM verdicts INDEXED BY verdicts_undecided
               WHERE decided IS NULL AND version IS NOT NULL";
    db.all(sql, (), |row| Ok(PolicyVersion(unsigned(row, 0)?)))
}

/// The newest version that may serve: none that was refused, is on trial or waits for a person.
pub(super) fn newest_servable(db: &Db) -> Result<PolicyVersion> {
    let sql = "SELECT max(version) FROM versions v WHERE NOT EXISTS
               (SELECT 1 FROM verdicts d WHERE d.version = v.version AND d.ruling <> ?1)";
    db.one(sql, [word(Ruling::Promoted)], |row| Ok(PolicyVersion(unsigned(row, 0)?)))
}

/// Ratings that count, of answers of these versions created since a given time, in the order in which they were given;
/// at most `max`, after row `after`.
pub(super) fn ratings(
    db: &Db,
    versions: &[PolicyVersion],
    since: UnixMillis,
    after: u64,
    max: usize,
) -> Result<Vec<TrialRating>> {
    let sql = "SELECT f.id, g.policy_version, f.rating, f.user
               FROM feedback f JOIN generations g ON g.seq = f.generation
               WHERE f.id > ?1 AND f.teaches = 1 AND f.rating IS NOT NULL
               AND g.policy_version IN (SELECT value FROM json_each(?2)) AND g.created >= ?3
               AND g.id LIKE ?4 || '%' ORDER BY f.id LIMIT ?5";
    let versions = list(&versions.iter().map(|v| signed(v.0)).collect::<Vec<_>>());
    let asked = GenerationKind::Request.prefix();
    db.all(sql, (signed(after), versions, signed(since), asked, signed(max as u64)), |row| {
        let (id, version) = (unsigned(row, 0)?, PolicyVersion(unsigned(row, 1)?));
        Ok(TrialRating { id, version, rating: row.get(2)?, user: row.maybe(3)? })
    })
}

/// What users did with answers to requests, of either version, created between two times; at most `max`, after row
/// `after`.
pub(super) fn answers(
    db: &Db,
    versions: (PolicyVersion, PolicyVersion),
    times: (UnixMillis, UnixMillis),
    after: u64,
    max: usize,
) -> Result<Vec<TrialAnswer>> {
    let sql = "SELECT g.seq, g.policy_version,
               EXISTS (SELECT 1 FROM feedback f WHERE f.generation = g.seq AND f.rating IS NOT NULL),
               EXISTS (SELECT 1 FROM feedback f WHERE f.generation = g.seq AND f.signal = 'regenerated'),
               EXISTS (SELECT 1 FROM feedback f WHERE f.generation = g.seq AND f.correction IS NOT NULL)
               FROM generations g WHERE g.seq > ?1 AND g.policy_version IN (?2, ?3) AND g.created >= ?4
               AND g.created < ?5 AND g.id LIKE ?6 || '%' ORDER BY g.seq LIMIT ?7";
    let asked = GenerationKind::Request.prefix();
    let (a, b) = (signed(versions.0.0), signed(versions.1.0));
    let bounds = (signed(after), a, b, signed(times.0), signed(times.1), asked, signed(max as u64));
    db.all(sql, bounds, |row| {
        Ok(TrialAnswer {
            id: unsigned(row, 0)?,
            version: PolicyVersion(unsigned(row, 1)?),
            rated: row.get(2)?,
            regenerated: row.get(3)?,
            corrected: row.get(4)?,
        })
    })
}

/// Users who rated since a given time, at most `max`.
pub(super) fn raters(db: &Db, since: UnixMillis, max: usize) -> Result<usize> {
    let sql = "SELECT count(*) FROM (SELECT DISTINCT user FROM feedback
               WHERE user IS NOT NULL AND created >= ?1 AND rating IS NOT NULL LIMIT ?2) AS raters";
    let count: i64 = db.one(sql, (signed(since), signed(max as u64)), |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or_default())
}
