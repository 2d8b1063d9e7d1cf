//! Connections: their number, timeouts and end. Reads no request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tower::ServiceExt;

/// Pause after a failed accept: the process is out of file descriptors, and retrying at once would spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The open connections, at most `limit`.
pub(super) struct Connections {
    router: Router,
    limit: u32,
    /// Timeout for the head of a request, and for idle connections.
    patience: Duration,
    places: Arc<Semaphore>,
    /// Connections that had sent no request when last checked, the oldest first.
    silent: VecDeque<Silent>,
    closing: watch::Sender<bool>,
}

struct Silent {
    spoke: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Silent {
    fn still(&self) -> bool {
        !self.spoke.load(Ordering::Relaxed) && !self.task.is_finished()
    }
}

impl Connections {
    pub(super) fn new(router: Router, limit: u32, patience: Duration) -> Self {
        let places = Arc::new(Semaphore::new(limit as usize));
        Self { router, limit, patience, places, silent: VecDeque::new(), closing: watch::Sender::new(false) }
    }

    /// Accepts connections until it is dropped. If all places are taken, the oldest connection that never sent a
    /// request gives up its place: merely opening connections keeps nobody out.
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
            self.silent.retain(Silent::still);
            if self.places.available_permits() == 0
                && let Some(oldest) = self.silent.pop_front()
            {
                oldest.task.abort();
            }
            // Waits while all places are taken; clients then wait in the kernel's queue, which is bounded too.
            let Ok(place) = self.places.clone().acquire_owned().await else { return };
            self.open(stream, place);
        }
    }

    fn open(&mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Tokens are small packets, each of which would otherwise wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let spoke = Arc::new(AtomicBool::new(false));
        let (router, heard) = (self.router.clone(), spoke.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            heard.store(true, Ordering::Relaxed);
            router.clone().oneshot(request)
        });
        let mut builder = http1::Builder::new();
        // A client that has sent everything may close its half; the response is still sent.
        builder.timer(TokioTimer::new()).header_read_timeout(self.patience).half_close(true);
        let mut closing = self.closing.subscribe();
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let task = tokio::spawn(async move {
            let _place = place;
            let mut connection = std::pin::pin!(connection);
            // Errors on a connection are the client's: it left, or it does not speak HTTP.
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
        self.silent.push_back(Silent { spoke, task: task.abort_handle() });
    }

    /// Lets running answers end, for at most `time`, and closes the remaining connections.
    pub(super) async fn close(mut self, time: Duration) {
        self.silent.drain(..).filter(Silent::still).for_each(|silent| silent.task.abort());
        let _ = self.closing.send(true);
        let _ = tokio::time::timeout(time, self.places.acquire_many(self.limit)).await;
    }
}
