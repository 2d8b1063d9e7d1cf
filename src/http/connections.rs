//! Connections: how many, how long one may be silent, which gives way, how they end. Reads no request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Version;
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use super::socket::Socket;
use crate::lock::lock;

/// Wait after a failed accept: the process has no file descriptor left, and trying at once would spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a connection that was told to give way has for it, before another one is told too.
const GIVING_WAY: Duration = Duration::from_millis(200);

/// The open connections, at most `limit`.
pub(super) struct Connections {
    router: Router,
    limit: u32,
    /// Time for the head of a request to arrive, and for a connection to be kept without one.
    patience: Duration,
    places: Arc<Semaphore>,
    open: Vec<Open>,
    closing: watch::Sender<bool>,
}

struct Open {
    turn: Arc<Turn>,
    task: JoinHandle<()>,
}

/// Whose turn it is on a connection.
struct Turn {
    state: Mutex<State>,
    gives_way: Notify,
}

#[derive(Clone, Copy)]
struct State {
    /// Whether it ever asked for anything.
    spoke: bool,
    /// Since when it has asked for nothing, if nothing is being answered. Never, once it was told to give way.
    idle: Option<Instant>,
}

impl Turn {
    fn new() -> Turn {
        Turn { state: Mutex::new(State { spoke: false, idle: Some(Instant::now()) }), gives_way: Notify::new() }
    }

    fn state(&self) -> State {
        *lock(&self.state)
    }

    /// It is the client's, or no longer.
    fn set(&self, idle: Option<Instant>) {
        *lock(&self.state) = State { spoke: true, idle };
    }
}

/// A request that is being answered; dropped when all of the answer was handed on.
struct Answering(Arc<Turn>);

impl Answering {
    fn new(turn: Arc<Turn>) -> Answering {
        turn.set(None);
        Answering(turn)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

impl Connections {
    pub(super) fn new(router: Router, limit: u32, patience: Duration) -> Self {
        let places = Arc::new(Semaphore::new(limit as usize));
        Self { router, limit, patience, places, open: Vec::new(), closing: watch::Sender::new(false) }
    }

    /// Takes connections until it is dropped. Where all places are taken, the one that has asked for nothing for the
    /// longest time gives up its own: who only opens connections, or keeps them, keeps nobody out.
    pub(super) async fn accept(&mut self, listener: &TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "no connection could be taken");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            let Some(place) = self.place().await else { return };
            self.open.retain(|open| !open.task.is_finished());
            self.open(stream, place);
        }
    }

    /// A place for one more; waits where all are in use. The others wait in the kernel's queue, which is bounded too.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if self.places.available_permits() == 0 {
                self.one_gives_way();
            }
            let place = tokio::time::timeout(GIVING_WAY, self.places.clone().acquire_owned());
            if let Ok(place) = place.await {
                return place.ok();
            }
        }
    }

    fn one_gives_way(&self) {
        let idle = self.open.iter().filter(|open| !open.task.is_finished());
        let idle = idle.filter_map(|open| Some((open.turn.state().idle?, open)));
        let Some((_, open)) = idle.min_by_key(|(since, _)| *since) else { return };
        if open.turn.state().spoke {
            // What it is sent is sent to its end.
            open.turn.set(None);
            open.turn.gives_way.notify_one();
        } else {
            open.task.abort();
        }
    }

    fn open(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Tokens are small packets: without this, each would wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let (socket, turn) = (Socket::new(stream), Arc::new(Turn::new()));
        let (router, client, answered) = (self.router.clone(), socket.clone(), turn.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let answering = Answering::new(answered.clone());
            let may_ask = request.version() >= Version::HTTP_11;
            let (client, answer) = (client.clone(), router.clone().oneshot(request));
            async move {
                tokio::select! {
                    biased;
                    answer = answer => {
                        let Ok(answer) = answer;
                        Ok::<Response, io::Error>(answer.map(|body| Body::new(Answer { body, _answering: answering })))
                    }
                    // Nobody waits for it any more: it is dropped, and whatever works for it learns that.
                    () = client.left(may_ask) => Err(io::ErrorKind::ConnectionReset.into()),
                }
            }
        });
        let mut builder = http1::Builder::new();
        // Who has sent all may close that half; the answer still goes out.
        builder.timer(TokioTimer::new()).header_read_timeout(self.patience).half_close(true);
        let mut closing = self.closing.subscribe();
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let told = turn.clone();
        let task = tokio::spawn(async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            // What goes wrong on a connection is its client's affair: it left, or it doesn't speak HTTP.
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
                () = told.gives_way.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        self.open.push(Open { turn, task });
    }

    /// Lets the answers under way end, for at most `time`, and closes the rest.
    pub(super) async fn close(mut self, time: Duration) {
        self.open.drain(..).filter(|open| !open.turn.state().spoke).for_each(|open| open.task.abort());
        let _ = self.closing.send(true);
        let _ = tokio::time::timeout(time, self.places.acquire_many(self.limit)).await;
    }
}

/// The body of an answer, which is under way until it is dropped.
struct Answer {
    body: Body,
    _answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
