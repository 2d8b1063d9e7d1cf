//! Opens the database file and migrates it to this build's format. Never touches a newer one.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::system::disk_room;

/// How long a write waits for a lock, which only someone using the sqlite3 shell can hold.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes below which a disk is called full: opening takes less.
const LEAST_ROOM: u64 = 1 << 17;

/// The steps between formats; a ledger of format n has had the first n. Never edit a released one: add another.
const MIGRATIONS: &[&str] = &[
    // 1. Rows are only added. The one later change is to `feedback.batch`, which marks what used a rating up.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

    CREATE TABLE versions (
        version INTEGER PRIMARY KEY,
        parent INTEGER REFERENCES versions(version),
        created INTEGER NOT NULL,
        metrics TEXT NOT NULL
    ) STRICT;
    CREATE TABLE activations (
        id INTEGER PRIMARY KEY,
        version INTEGER NOT NULL REFERENCES versions(version),
        created INTEGER NOT NULL
    ) STRICT;
    INSERT INTO versions VALUES (0, NULL, CAST(unixepoch('subsec') * 1000 AS INTEGER), '{}');
    INSERT INTO activations VALUES (1, 0, CAST(unixepoch('subsec') * 1000 AS INTEGER));

    CREATE TABLE generations (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        policy_version INTEGER NOT NULL REFERENCES versions(version),
        prompt BLOB NOT NULL,
        response BLOB NOT NULL,
        text TEXT NOT NULL,
        sampling TEXT NOT NULL,
        finish TEXT NOT NULL,
        user TEXT,
        created INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,
        version INTEGER REFERENCES versions(version),
        reason TEXT,
        created INTEGER NOT NULL,
        CHECK ((version IS NULL) <> (reason IS NULL))
    ) STRICT;

    CREATE TABLE feedback (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        generation INTEGER NOT NULL REFERENCES generations(seq),
        rating REAL,
        correction TEXT,
        teaches INTEGER NOT NULL,
        user TEXT,
        comment TEXT,
        created INTEGER NOT NULL,
        batch INTEGER REFERENCES batches(id),
        CHECK ((rating IS NULL) <> (correction IS NULL))
    ) STRICT;
    CREATE INDEX feedback_of_generation ON feedback(generation);
    CREATE INDEX feedback_unused ON feedback(generation) WHERE teaches = 1 AND batch IS NULL;

    CREATE TABLE preferences (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        chosen INTEGER NOT NULL REFERENCES generations(seq),
        rejected INTEGER NOT NULL REFERENCES generations(seq),
        user TEXT,
        created INTEGER NOT NULL
    ) STRICT;",
    // 2. Signals and comments beside ratings and corrections; what feedback counts for; what a sample was made of.
    // Marks: `teaches` is whether it may train (`left_out` says why not), `batch` what used it up, `content` the answer
    // it is about, whoever got it: the same tokens to the same prompt.
    "CREATE TABLE feedback_2 (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        generation INTEGER NOT NULL REFERENCES generations(seq),
        rating REAL,
        correction TEXT,
        signal TEXT,
        teaches INTEGER NOT NULL,
        left_out TEXT,
        user TEXT,
        comment TEXT,
        created INTEGER NOT NULL,
        content INTEGER,
        batch INTEGER REFERENCES batches(id),
        CHECK ((rating IS NOT NULL) + (correction IS NOT NULL) + (signal IS NOT NULL) <= 1)
    ) STRICT;
    INSERT INTO feedback_2 (id, generation, rating, correction, teaches, user, comment, created, batch)
        SELECT id, generation, rating, correction, teaches, user, comment, created, batch FROM feedback;
    DROP TABLE feedback;
    ALTER TABLE feedback_2 RENAME TO feedback;
    CREATE INDEX feedback_of_generation ON feedback(generation);
    CREATE INDEX feedback_unused ON feedback(generation, id, user, created) WHERE teaches = 1 AND batch IS NULL;
    CREATE INDEX feedback_of_user ON feedback(user, created);
    CREATE INDEX feedback_of_content ON feedback(content) WHERE content IS NOT NULL;

    CREATE INDEX preferences_of_chosen ON preferences(chosen);
    CREATE INDEX preferences_of_rejected ON preferences(rejected);

    CREATE TABLE samples (
        id INTEGER PRIMARY KEY,
        batch INTEGER NOT NULL REFERENCES batches(id),
        generation INTEGER NOT NULL REFERENCES generations(seq),
        kind TEXT NOT NULL,
        score REAL NOT NULL,
        terms TEXT NOT NULL
    ) STRICT;
    CREATE INDEX samples_of_generation ON samples(generation);

    CREATE TABLE agreement (
        user TEXT PRIMARY KEY,
        compared INTEGER NOT NULL,
        disagreed INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE reviews (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user TEXT NOT NULL,
        verdict TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX reviews_of_user ON reviews(user);
    CREATE INDEX generations_of_user ON generations(user) WHERE user IS NOT NULL;",
    // 3. Waiting feedback, by user.
    "CREATE INDEX feedback_unused_of_user ON feedback(user, generation, id, created) \
    WHERE teaches = 1 AND batch IS NULL;",
    // 4. Verdicts on candidates, including those that never became a version; `decided` is NULL during a trial and
    // while a proposal waits.
    "CREATE TABLE verdicts (
        id INTEGER PRIMARY KEY,
        version INTEGER REFERENCES versions(version),
        parent INTEGER NOT NULL,
        ruling TEXT NOT NULL,
        created INTEGER NOT NULL,
        decided INTEGER,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX verdicts_of_version ON verdicts(version) WHERE version IS NOT NULL;
    CREATE INDEX verdicts_undecided ON verdicts(ruling) WHERE decided IS NULL;
    CREATE INDEX generations_of_version ON generations(policy_version, seq);",
    // 5. What still has words, by age. Of answers that have taught a row without words stays when they are too old.
    "CREATE INDEX generations_with_words ON generations(created) WHERE length(prompt) > 0;",
    // 6. What a batch was trained with, so that it can be replayed. A version may have several batches: those that only
    // set the mean, and all that a replay went through.
    "ALTER TABLE batches ADD settings TEXT;
    CREATE INDEX batches_of_version ON batches(version) WHERE version IS NOT NULL;
    CREATE INDEX samples_of_batch ON samples(batch);
    CREATE INDEX feedback_of_batch ON feedback(batch) WHERE batch IS NOT NULL;",
    // 7. What was said in responses; it goes with the words of the answer.
    "CREATE TABLE responses (
        generation INTEGER PRIMARY KEY REFERENCES generations(seq) ON DELETE CASCADE,
        previous TEXT,
        said TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
    CREATE TRIGGER responses_without_words AFTER UPDATE OF prompt ON generations WHEN length(new.prompt) = 0
    BEGIN DELETE FROM responses WHERE generation = new.seq; END;",
    // 8. The conversations of a trial and which of its versions answers them: they keep it over a restart.
    "CREATE TABLE routes (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        candidate INTEGER NOT NULL REFERENCES versions(version),
        conversation INTEGER NOT NULL UNIQUE,
        theirs INTEGER NOT NULL
    ) STRICT;",
    // 9. Whose words an answer's prompt repeats, beside those of its own user: earlier responses', or a prompt that was
    // asked again for a rollout. And what imports know again: the id that an imported answer first had, and the
    // identity of a piece of feedback, which those lack that came from lines without one.
    "CREATE TABLE words_of (
        generation INTEGER NOT NULL REFERENCES generations(seq) ON DELETE CASCADE,
        user TEXT NOT NULL,
        PRIMARY KEY (generation, user)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX words_of_user ON words_of(user);
    CREATE TRIGGER words_of_nobody AFTER UPDATE OF prompt ON generations WHEN length(new.prompt) = 0
    BEGIN DELETE FROM words_of WHERE generation = new.seq; END;
    INSERT INTO words_of
        WITH RECURSIVE up (generation, previous) AS (
            SELECT generation, previous FROM responses WHERE previous IS NOT NULL
            UNION SELECT up.generation, r.previous FROM up JOIN generations g ON g.id = up.previous
            JOIN responses r ON r.generation = g.seq WHERE r.previous IS NOT NULL)
        SELECT DISTINCT up.generation, g.user FROM up JOIN generations g ON g.id = up.previous
        JOIN generations own ON own.seq = up.generation WHERE g.user IS NOT NULL AND g.user IS NOT own.user;
    INSERT OR IGNORE INTO words_of SELECT r.seq, w.user FROM words_of w JOIN generations g ON g.seq = w.generation
        JOIN generations r ON r.prompt = g.prompt WHERE r.id >= 'rol-' AND r.id < 'rol.' AND r.user IS NOT w.user;

    ALTER TABLE generations ADD origin TEXT;
    CREATE INDEX generations_of_origin ON generations(origin) WHERE origin IS NOT NULL;
    ALTER TABLE feedback ADD identity TEXT;
    UPDATE feedback SET identity = lower(hex(randomblob(16)))
        WHERE generation NOT IN (SELECT seq FROM generations WHERE id >= 'imp-' AND id < 'imp.');
    CREATE INDEX feedback_of_identity ON feedback(identity);",
];

/// The writing connection, at this build's format.
pub(super) fn open_writer(path: &Path) -> Result<Connection> {
    let mut db = Connection::open(path)?;
    configure(&db)?;
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Error::io(format!(
            "journal mode is {mode}, expected wal: is the folder on a network file system?"
        )));
    }
    // One fsync per commit, so an acknowledged write survives a power failure; deleted data is overwritten.
    db.execute_batch(
        "PRAGMA secure_delete = ON; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON;
         PRAGMA checkpoint_fullfsync = ON;",
    )?;
    db.pragma_update(None, "journal_size_limit", 64 << 20)?;
    migrate(&mut db, MIGRATIONS)?;
    Ok(db)
}

/// Why a ledger could not be opened. Of a full disk SQLite mostly says "disk I/O error".
pub(super) fn not_opened(error: Error, dir: &Path, path: &Path) -> Error {
    let full = disk_room(dir).is_some_and(|room| room.free < LEAST_ROOM);
    let error = match full {
        true => Error::io(format!("the disk is full, expected {} KiB of room to begin with", LEAST_ROOM >> 10)),
        false => error,
    };
    error.context(format!("opening {}", path.display()))
}

/// A read-only connection.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    configure(&db)?;
    match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)) {
        // In a folder that can't be written SQLite can't make the log's index. Without a log there is nothing in it.
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::CannotOpen) && !has_log(path) => {
            let whole = format!("file:{}?immutable=1", escaped(path)?);
            let db = Connection::open_with_flags(whole, flags | OpenFlags::SQLITE_OPEN_URI)?;
            configure(&db)?;
            Ok(db)
        }
        _ => Ok(db),
    }
}

fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|about| about.len() > 0)
}

/// A path within a URI.
fn escaped(path: &Path) -> Result<String> {
    let path = path.to_str().ok_or_else(|| Error::arg("the path is not UTF-8"))?;
    Ok(path.replace('%', "%25").replace('?', "%3f").replace('#', "%23"))
}

/// Checks that a ledger opened for reading has this build's format.
pub(super) fn check_format(db: &Connection) -> Result<()> {
    let format: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match MIGRATIONS.len() as i64 {
        ours if format == ours => Ok(()),
        ours => Err(Error::unsupported(format!(
            "it has format {format}, expected {ours}: a start of the daemon updates it"
        ))),
    }
}

fn configure(db: &Connection) -> Result<()> {
    db.set_prepared_statement_cache_capacity(64);
    db.busy_timeout(PATIENCE)?;
    db.pragma_update(None, "foreign_keys", true)?;
    Ok(())
}

/// Applies the missing steps, all or none.
fn migrate(db: &mut Connection, steps: &[&str]) -> Result<()> {
    // A start that has nothing to write needs no room on the disk.
    if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? == steps.len() as i64 {
        return Ok(());
    }
    let tx = Transaction::new(db, TransactionBehavior::Immediate)?;
    let format: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(format).ok().and_then(|done| steps.get(done..)) else {
        let ours = steps.len();
        return Err(Error::unsupported(format!("it has format {format}, this build knows formats up to {ours}")));
    };
    let tables: i64 = tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if format == 0 && tables > 0 {
        return Err(Error::io("it is a database of another program, expected a ledger"));
    }
    for step in missing {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", steps.len() as i64)?;
    tx.commit()?;
    Ok(())
}

/// A new ledger of an earlier format.
#[cfg(test)]
pub(in crate::ledger) fn of_format(path: &Path, format: usize) -> Connection {
    let mut db = Connection::open(path).unwrap();
    migrate(&mut db, &MIGRATIONS[..format]).unwrap();
    db
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[&str] =
        &["CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7);", "ALTER TABLE a ADD y INTEGER DEFAULT 3;"];

    fn format(db: &Connection) -> i64 {
        db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_old_ledger_gets_the_missing_steps_once_and_keeps_its_rows() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &STEPS[..1]).unwrap();
        assert_eq!(format(&db), 1);
        migrate(&mut db, STEPS).unwrap();
        migrate(&mut db, STEPS).unwrap();
        assert_eq!(format(&db), 2);
        let row: (i64, i64) = db.query_row("SELECT x, y FROM a", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        assert_eq!(row, (7, 3));
    }

    #[test]
    fn a_step_that_fails_leaves_the_old_format_whole() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &STEPS[..1]).unwrap();
        assert!(migrate(&mut db, &[STEPS[0], STEPS[1], "CREATE TABLE a (x INTEGER);"]).is_err());
        assert_eq!(format(&db), 1);
        assert!(db.prepare("SELECT y FROM a").is_err());
    }

    #[test]
    fn a_newer_ledger_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        db.pragma_update(None, "user_version", 9).unwrap();
        let error = migrate(&mut db, STEPS).unwrap_err();
        assert_eq!(error.message(), "it has format 9, this build knows formats up to 2");
        assert_eq!(format(&db), 9);
    }

    #[test]
    fn a_database_of_another_program_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        assert!(migrate(&mut db, STEPS).unwrap_err().message().contains("another program"));
    }
}
