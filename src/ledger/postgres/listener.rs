//! Hears what other servers of a ledger commit: a connection that only listens. News that were lost are told of as
//! such. Never reads a table.

use std::future::poll_fn;
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_postgres::AsyncMessage;

use super::said;
use super::target::Target;
use crate::error::{Error, Result};
use crate::ledger::db::{Heard, News};

/// The wait before the first try to connect again, and the longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The statement that tells other servers what is committed with it.
pub(super) fn telling(schema: i32, from: u64, news: News) -> String {
    let News { waiting, versions } = news;
    let told = format!("{from:016x} {waiting} {}", u8::from(versions));
    format!("SELECT pg_notify('{}', '{told} ' || CAST(pg_current_xact_id() AS TEXT))", channel(schema))
}

fn channel(schema: i32) -> String {
    format!("apa_ledger_{:08x}", schema.cast_unsigned())
}

/// Whose news they are, the news, and when they were committed.
fn read(told: &str) -> Option<(u64, News, i64)> {
    let mut words = told.split(' ');
    let from = u64::from_str_radix(words.next()?, 16).ok()?;
    let news = News { waiting: words.next()?.parse().ok()?, versions: words.next()? == "1" };
    Some((from, news, words.next()?.parse().ok()?))
}

/// Ends the connection when it is dropped.
pub(in crate::ledger) struct Listener {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens once this returns.
    pub(super) fn start(target: Target, own: u64, told: impl Fn(Heard) + Send + 'static) -> Result<Self> {
        let (end, ended) = oneshot::channel();
        let (ready, begun) = std::sync::mpsc::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("apa-ledger-news".into()).spawn(move || {
            let hear = async {
                let (mut first, mut wait) = (Some(ready), AGAIN.0);
                loop {
                    let begun = || {
                        match first.take() {
                            Some(ready) => drop(ready.send(Ok(()))),
                            // What came meanwhile was not heard.
                            None => told(Heard::Missed),
                        }
                    };
                    let lost = listen(&target, own, begun, &told).await;
                    if let Some(ready) = first.take() {
                        return drop(ready.send(lost));
                    }
                    match lost {
                        Ok(()) => wait = AGAIN.0,
                        Err(error) => tracing::warn!(%error, "no news of other servers; it is tried again"),
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    () = hear => {}
                    _ = ended => {}
                }
            });
        })?;
        let listener = Self { end: Some(end), thread: Some(thread) };
        begun.recv().map_err(|_| Error::panic("the thread that listens to Postgres ended"))??;
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.end.take());
        // What it tells may drop the ledger on its own thread.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            drop(thread.join());
        }
    }
}

/// Tells what others commit until the connection is lost.
async fn listen(target: &Target, own: u64, begun: impl FnOnce(), told: &impl Fn(Heard)) -> Result<()> {
    let (client, mut connection) = target.config.connect(target.tls.clone()).await.map_err(said)?;
    let hear = |message: AsyncMessage| {
        if let AsyncMessage::Notification(news) = message
            && let Some((from, news, moment)) = read(news.payload())
            && from != own
        {
            told(Heard::News(news, moment));
        }
    };
    let mut messages = pin!(poll_fn(move |cx| connection.poll_message(cx)));
    let begin = async {
        let row = client.query_one("SELECT hashtext(current_schema())", &[]).await?;
        client.batch_execute(&format!("LISTEN {}", channel(row.try_get(0)?))).await
    };
    let mut begin = pin!(begin);
    let began = loop {
        tokio::select! {
            began = &mut begin => break began,
            message = &mut messages => match message {
                Some(Ok(message)) => hear(message),
                Some(Err(e)) => return Err(said(e)),
                None => return Err(Error::io("Postgres closed the connection")),
            },
        }
    };
    began.map_err(said)?;
    begun();
    loop {
        match messages.as_mut().await {
            Some(Ok(message)) => hear(message),
            Some(Err(_)) | None => return Ok(()),
        }
    }
}
