//! Connections: their number, timeouts and end, and which of them gives way. Reads no request.

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

/// Pause after a failed accept: the process is out of file descriptors, and retrying at once would spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a connection that was told to close has for it, before the next one is told too.
const GIVING_WAY: Duration = Duration::from_millis(200);

/// The open connections, at most `limit`.
pub(super) struct Connections {
    router: Router,
    limit: u32,
    /// Timeout for the head of a request, and for idle connections.
    patience: Duration,
    places: Arc<Semaphore>,
    open: Vec<Open>,
    closing: watch::Sender<bool>,
}

struct Open {
    turn: Arc<Turn>,
    task: JoinHandle<()>,
}

/// Whether a connection is idle or waits for the server.
struct Turn {
    state: Mutex<State>,
    gives_way: Notify,
}

#[derive(Clone, Copy)]
struct State {
    /// Whether it has sent a request.
    spoke: bool,
    /// When its last response ended, or when it was opened; `None` while a request is being answered, and once it was
    /// told to close.
    idle: Option<Instant>,
    /// Since when it sends the body of a request.
    receiving: Option<Instant>,
}

impl Turn {
    fn new() -> Turn {
        Turn {
            state: Mutex::new(State { spoke: false, idle: Some(Instant::now()), receiving: None }),
            gives_way: Notify::new(),
        }
    }

    fn state(&self) -> State {
        *lock(&self.state)
    }

    fn set(&self, idle: Option<Instant>) {
        *lock(&self.state) = State { spoke: true, idle, receiving: None };
    }

    fn receive(&self, since: Option<Instant>) {
        lock(&self.state).receiving = since;
    }
}

/// A request that is being answered; dropped with the end of the response's body.
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

    /// Accepts connections until it is dropped. If all places are taken, the connection that has been idle longest
    /// gives up its place, else the one that has been sending a request's body longest: merely opening connections,
    /// keeping them alive, or sending a byte now and then keeps nobody out.
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

    /// A place for one more connection. Waits while all are in use; clients then wait in the kernel's queue, which is
    /// bounded too.
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
        let open = || self.open.iter().filter(|open| !open.task.is_finished());
        let idle = open().filter_map(|open| Some((open.turn.state().idle?, open)));
        let Some((_, open)) = idle.min_by_key(|(since, _)| *since) else {
            let receiving = open().filter_map(|open| Some((open.turn.state().receiving?, open)));
            if let Some((_, open)) = receiving.min_by_key(|(since, _)| *since) {
                open.task.abort();
            }
            return;
        };
        if open.turn.state().spoke {
            // A response that is still being written is written to its end.
            open.turn.set(None);
            open.turn.gives_way.notify_one();
        } else {
            open.task.abort();
        }
    }

    fn open(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Tokens are small packets, each of which would otherwise wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let (socket, turn) = (Socket::new(stream), Arc::new(Turn::new()));
        let (router, client, answered) = (self.router.clone(), socket.clone(), turn.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let answering = Answering::new(answered.clone());
            let may_ask = request.version() >= Version::HTTP_11;
            let request = request.map(|body| Body::new(Receiving::new(body, answered.clone())));
            let (client, answer) = (client.clone(), router.clone().oneshot(request));
            async move {
                tokio::select! {
                    biased;
                    answer = answer => {
                        let Ok(answer) = answer;
                        Ok::<Response, io::Error>(answer.map(|body| Body::new(Answer { body, _answering: answering })))
                    }
                    // The client has left: the handler is dropped, which cancels the work for it.
                    () = client.left(may_ask) => Err(io::ErrorKind::ConnectionReset.into()),
                }
            }
        });
        let mut builder = http1::Builder::new();
        // A client that has sent everything may close its half; the response is still sent.
        builder.timer(TokioTimer::new()).header_read_timeout(self.patience).half_close(true);
        let mut closing = self.closing.subscribe();
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let told = turn.clone();
        let task = tokio::spawn(async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            // Errors on a connection are the client's: it left, or it does not speak HTTP.
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
                () = told.gives_way.notified() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        self.open.push(Open { turn, task });
    }

    /// Lets running answers end, for at most `time`, and closes the remaining connections.
    pub(super) async fn close(mut self, time: Duration) {
        self.open.drain(..).filter(|open| !open.turn.state().spoke).for_each(|open| open.task.abort());
        let _ = self.closing.send(true);
        let _ = tokio::time::timeout(time, self.places.acquire_many(self.limit)).await;
    }
}

/// The body of a request; its connection is receiving until the end of it, or until it is dropped.
struct Receiving {
    body: Incoming,
    turn: Arc<Turn>,
}

impl Receiving {
    fn new(body: Incoming, turn: Arc<Turn>) -> Receiving {
        turn.receive((!body.is_end_stream()).then(Instant::now));
        Receiving { body, turn }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.turn.receive(None);
    }
}

impl HttpBody for Receiving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.turn.receive(None);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response; its connection is busy until it is dropped.
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
