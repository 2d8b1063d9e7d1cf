//! The ledger in a database of Postgres, which several servers may share. They write in turn, under one lock, so that
//! each sees all that was committed before, in the order of the rows' numbers. Never knows what a statement is about.

mod cells;
mod listener;
mod schema;
mod sql;
mod target;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::db::{Asked, Db, Engine, Heard, News, Purpose, Remains, Take, TakeOf, Value};
use crate::error::{Code, Error, Result};
pub(in crate::ledger) use listener::Listener;
use target::Target;

/// Connections that read.
const READERS: usize = 3;
/// How long a write waits for another server's, and how long one may hang in the middle of its own.
/// And an index is taken where there is one: plans outlive the size of the tables that they were made for.
const SETTINGS: &str = "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '10s'; \
    SET enable_seqscan = off; SET jit = off; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';";
/// How long a call is waited for, an answer to a lock included: a server that hangs must not hang those who ask.
const ANSWER: Duration = Duration::from_secs(20);
/// The waits between tries to connect again: a short restart fails nothing that had not begun.
const AGAIN: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(800)];
/// Half of the key of the writers' lock; the other half is the schema's.
const LOCK: i32 = 0x6170_616c;

/// A database that has a ledger.
pub(super) struct Database {
    target: Target,
    writing_as: u64,
}

/// Opens the ledger of a database for writing and for reading; its tables are made if missing.
pub(super) fn open(url: &str) -> Result<(Db, Vec<Db>, Database)> {
    let target = Target::parse(url)?;
    let writing_as = rand::random();
    let open = || -> Result<_> {
        let writer = Db::new(Postgres::connect(target.clone(), writing_as)?);
        schema::migrate(&writer)?;
        let reader = || Ok(Db::new(Postgres::new(target.clone(), writing_as)?));
        let readers = (0..READERS).map(|_| reader()).collect::<Result<_>>()?;
        Ok((writer, readers))
    };
    let (writer, readers) = open().map_err(|e| opening(e, &target))?;
    Ok((writer, readers, Database { target, writing_as }))
}

impl Database {
    /// Has other servers' news told, until what this returns is dropped.
    pub(super) fn listen(&self, told: impl Fn(Heard) + Send + 'static) -> Result<Listener> {
        let listener = Listener::start(self.target.clone(), self.writing_as, told);
        listener.map_err(|e| opening(e, &self.target))
    }
}

/// Opens a ledger for reading, if it is of this build's format.
pub(super) fn open_reader(url: &str) -> Result<Db> {
    let target = Target::parse(url)?;
    let open = || {
        let db = Db::new(Postgres::connect(target.clone(), 0)?);
        schema::check(&db)?;
        Ok(db)
    };
    open().map_err(|e| opening(e, &target))
}

/// Where a database is and what answers there.
pub(super) fn answers(url: &str) -> Result<String> {
    let target = Target::parse(url)?;
    let ask = || -> Result<String> {
        let db = Db::new(Postgres::connect(target.clone(), 0)?);
        let show = |what: &str| db.one(&format!("SHOW {what}"), (), |row| row.get::<String>(0));
        let durable = if show("fsync")? == "on" { "" } else { "; its fsync is off: a power failure loses ratings" };
        Ok(format!("Postgres {} at {target}{durable}", show("server_version")?))
    };
    ask().map_err(|e| opening(e, &target))
}

/// Where a ledger is, without the password.
pub(super) fn shown(url: &str) -> Result<String> {
    Ok(Target::parse(url)?.to_string())
}

/// A connection of another program's.
#[cfg(test)]
pub(super) fn connection(url: &str) -> Db {
    Db::new(Postgres::connect(Target::parse(url).unwrap(), 0).unwrap())
}

fn opening(error: Error, target: &Target) -> Error {
    error.context(format!("opening the ledger in Postgres at {target}"))
}

/// A connection, made again when it is lost.
pub(super) struct Postgres {
    target: Target,
    /// Tells own news from others'.
    writing_as: u64,
    runtime: Option<Runtime>,
    session: RefCell<Option<Session>>,
    /// A call was not answered: the session is of no use any more.
    hung: Cell<bool>,
    /// What goes out before the next statement, in one way there and back.
    queued: RefCell<String>,
}

/// What lasts as long as one connection.
struct Session {
    client: Client,
    statements: RefCell<HashMap<String, Statement>>,
    /// Of the schema: the other half of the lock's key, and the end of the channel's name.
    schema: i32,
}

impl Postgres {
    fn new(target: Target, writing_as: u64) -> Result<Self> {
        let runtime = Some(Builder::new_current_thread().enable_all().build()?);
        let session = RefCell::default();
        Ok(Self { target, writing_as, runtime, session, hung: Cell::default(), queued: RefCell::default() })
    }

    fn connect(target: Target, writing_as: u64) -> Result<Self> {
        let db = Self::new(target, writing_as)?;
        let session = db.begin_session()?;
        db.session.replace(Some(session));
        Ok(db)
    }

    /// Drives the connection until a call is answered.
    fn wait<T: Send>(&self, call: impl Future<Output = T> + Send) -> Result<T> {
        let runtime = self.runtime.as_ref().ok_or_else(|| Error::closed("the ledger is closed"))?;
        if self.hung.get() {
            return Err(no_answer());
        }
        let call = async { timeout(ANSWER, call).await };
        let answered = if Handle::try_current().is_err() {
            runtime.block_on(call)
        } else {
            // A thread that runs an HTTP service's tasks can't drive this one's.
            let waited = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(call)).join());
            waited.map_err(|_| Error::panic("a call to Postgres panicked"))?
        };
        answered.map_err(|_| {
            self.hung.set(true);
            no_answer()
        })
    }

    fn begin_session(&self) -> Result<Session> {
        self.hung.set(false);
        let (config, tls) = (self.target.config.clone(), self.target.tls.clone());
        let connect = async move {
            let (client, connection) = config.connect(tls).await?;
            // Its error is that of the next call.
            tokio::spawn(async move { drop(connection.await) });
            client.batch_execute(SETTINGS).await?;
            let schema = client.query_one("SELECT hashtext(current_schema())", &[]).await?.try_get(0)?;
            Ok((client, schema))
        };
        let (client, schema) = self.wait(connect)?.map_err(said)?;
        let schema: Option<i32> = schema;
        let schema =
            schema.ok_or_else(|| Error::io("the role has no schema to use, expected one in its search_path"))?;
        Ok(Session { client, statements: RefCell::default(), schema })
    }

    /// Sends what is queued and then a call, without waiting in between.
    fn send<T: Send>(
        &self,
        session: &Session,
        call: impl Future<Output = Result<T, tokio_postgres::Error>> + Send,
    ) -> Result<T> {
        let (queued, client) = (self.queued.take(), &session.client);
        let both = async {
            if queued.is_empty() {
                return call.await;
            }
            try_join(client.batch_execute(&queued), call).await.map(|(_, done)| done)
        };
        self.wait(both)?.map_err(said)
    }

    fn statement(&self, session: &Session, sql: &str) -> Result<Statement> {
        if let Some(known) = session.statements.borrow().get(sql) {
            return Ok(known.clone());
        }
        let made = self.send(session, session.client.prepare(&sql::translated(sql)))?;
        session.statements.borrow_mut().insert(sql.to_owned(), made.clone());
        Ok(made)
    }

    fn with<T>(&self, work: impl FnOnce(&Session) -> Result<T>) -> Result<T> {
        let session = self.session.borrow();
        let session = session.as_ref().ok_or_else(|| Error::io("the connection to Postgres was lost"))?;
        work(session)
    }

    fn queue(&self, sql: &str) {
        let mut queued = self.queued.borrow_mut();
        queued.push_str(sql);
        queued.push(';');
    }

    /// Sends what is queued.
    fn flush(&self) -> Result<()> {
        let queued = self.queued.take();
        self.with(|session| {
            let client = &session.client;
            self.wait(client.batch_execute(&queued))?.map_err(said)
        })
    }

    fn start(&self, purpose: Purpose) -> Result<()> {
        self.queued.take();
        match purpose {
            Purpose::Read => self.queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            Purpose::Write => {
                let schema = self.with(|session| Ok(session.schema))?;
                self.queue(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK}, {schema})"));
            }
        }
        self.flush()
    }

    fn is_lost(&self) -> bool {
        self.hung.get() || self.session.borrow().as_ref().is_none_or(|session| session.client.is_closed())
    }
}

fn values<'a>(values: &'a [Value<'a>]) -> impl ExactSizeIterator<Item = &'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync))
}

impl Engine for Postgres {
    fn execute(&self, sql: &str, given: &[Value<'_>]) -> Result<u64> {
        self.with(|session| {
            let statement = self.statement(session, sql)?;
            self.send(session, session.client.execute_raw(&statement, values(given)))
        })
    }

    fn rows(&self, sql: &str, given: &[Value<'_>], take: &mut Take<'_>) -> Result<()> {
        let rows = self.with(|session| {
            let statement = self.statement(session, sql)?;
            let given: Vec<&(dyn ToSql + Sync)> = values(given).collect();
            self.send(session, session.client.query(&statement, &given))
        })?;
        for row in &rows {
            if !take(row)? {
                break;
            }
        }
        Ok(())
    }

    fn rows_of(&self, asked: &[Asked<'_>], take: &mut TakeOf<'_>) -> Result<()> {
        let rows = self.with(|session| {
            let statement = |one: &Asked<'_>| self.statement(session, &one.sql);
            let statements = asked.iter().map(statement).collect::<Result<Vec<_>>>()?;
            let given: Vec<Vec<&(dyn ToSql + Sync)>> = asked.iter().map(|one| values(&one.values).collect()).collect();
            // They go out one after another, and no answer is waited for in between.
            let calls = statements.iter().zip(&given).map(|(statement, given)| session.client.query(statement, given));
            self.send(session, try_join_all(calls))
        })?;
        rows.iter().enumerate().try_for_each(|(i, rows)| rows.iter().try_for_each(|row| take(i, row)))
    }

    fn begin(&self, purpose: Purpose) -> Result<()> {
        if !self.is_lost() {
            match self.start(purpose) {
                // Only now it is seen that it was lost meanwhile.
                Err(error) if error.code() == Code::Io => {}
                begun => return begun.inspect_err(|_| self.roll_back()),
            }
        }
        let mut session = self.begin_session();
        for wait in AGAIN {
            if session.is_ok() || self.hung.get() {
                break;
            }
            std::thread::sleep(wait);
            session = self.begin_session();
        }
        self.session.replace(Some(session?));
        self.start(purpose).inspect_err(|_| self.roll_back())
    }

    fn commit(&self, news: News) -> Result<()> {
        if news != News::default() {
            let (from, schema) = (self.writing_as, self.with(|session| Ok(session.schema))?);
            self.queue(&listener::telling(schema, from, news));
        }
        self.queue("COMMIT");
        self.flush()
    }

    fn roll_back(&self) {
        self.queued.take();
        self.queue("ROLLBACK");
        if self.flush().is_err() {
            self.session.take();
        }
    }

    fn mark(&self) -> Result<()> {
        self.queue("SAVEPOINT job");
        Ok(())
    }

    fn undo(&self) -> Result<()> {
        self.queue("ROLLBACK TO SAVEPOINT job");
        self.flush()
    }

    fn unmark(&self) -> Result<()> {
        self.queue("RELEASE SAVEPOINT job");
        Ok(())
    }

    fn last_feedback(&self) -> Result<i64> {
        let sql =
            "SELECT coalesce(pg_sequence_last_value(CAST(pg_get_serial_sequence('feedback', 'id') AS regclass)), 0)";
        let mut last = 0;
        self.rows(sql, &[], &mut |row| {
            last = row.get(0)?;
            Ok(false)
        })?;
        Ok(last)
    }

    fn moment(&self) -> Result<i64> {
        let mut moment = 0;
        self.rows("SELECT CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)", &[], &mut |row| {
            moment = row.get(0)?;
            Ok(false)
        })?;
        Ok(moment)
    }

    /// What pages and the log still hold is Postgres's own to overwrite.
    fn overwrite(&self, _: Duration) -> Result<Remains> {
        Ok(Remains::Beyond)
    }

    #[cfg(test)]
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.session.take();
        // A thread that runs an HTTP service's tasks must not wait for this one's.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn no_answer() -> Error {
    Error::io(format!("Postgres doesn't answer within {} seconds", ANSWER.as_secs()))
}

/// What Postgres says, in our words.
fn said(e: tokio_postgres::Error) -> Error {
    let Some(db) = e.as_db_error() else {
        let cause = std::error::Error::source(&e).map_or_else(String::new, |cause| format!(": {cause}"));
        return Error::io(format!("Postgres can't be reached: {e}{cause}"));
    };
    let message = db.message();
    match *db.code() {
        SqlState::LOCK_NOT_AVAILABLE => {
            Error::busy("another server holds the ledger: nothing was written; try again when it has let go")
        }
        SqlState::DISK_FULL => Error::io("the disk of Postgres is full"),
        SqlState::OUT_OF_MEMORY => Error::nomem(format!("Postgres ran out of memory: {message}")),
        SqlState::TOO_MANY_CONNECTIONS => Error::busy(format!("Postgres has no connection left: {message}")),
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            Error::io(format!("Postgres refuses the role or its password in ledger.url: {message}"))
        }
        SqlState::INVALID_CATALOG_NAME => Error::io(format!("{message}; create it first")),
        SqlState::INSUFFICIENT_PRIVILEGE => Error::io(format!("the role of ledger.url may not do that: {message}")),
        _ => Error::io(format!("Postgres: {message}")),
    }
}
