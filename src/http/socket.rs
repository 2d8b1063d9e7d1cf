//! The socket of a connection, shared by hyper, which reads and writes it, and by what looks whether its client has
//! left. Knows nothing of requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Time between two looks at a client whose end has come, or that has sent more than is read now.
const LOOK: Duration = Duration::from_millis(500);
/// How long a client that has closed its half waits before it is asked whether it is there, and then each time.
const ASK: Duration = Duration::from_secs(2);
/// What it is asked with: HTTP clients skip it, and a machine whose socket is closed resets the connection.
const QUESTION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// One end of a connection.
#[derive(Clone)]
pub(super) struct Socket(Arc<TcpStream>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Socket {
        Socket(Arc::new(stream))
    }

    /// Resolves once the client has left, and never before. That it sends nothing more doesn't say so: it may have
    /// closed that half, and wait for its answer. Only for while nothing is being written; `may_ask` tells whether its
    /// HTTP is new enough to be asked.
    pub(super) async fn left(&self, may_ask: bool) {
        let mut byte = [0];
        loop {
            match self.0.peek(&mut byte).await {
                Ok(0) => break,
                // The rest of its request, or the next one.
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(_) => return,
            }
        }
        if !may_ask {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(ASK).await;
            match self.0.try_write(QUESTION) {
                Ok(written) if written == QUESTION.len() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return,
            }
            tokio::time::sleep(LOOK).await;
            if !matches!(self.0.take_error(), Ok(None)) {
                return;
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: it closes where its last holder drops it, which is at once.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
