//! The HTTP service beside an application: a thread with a runtime of its own. Never opens or closes the engine.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread::JoinHandle;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::lock::lock;

/// Threads for connections; few, since the model is the bottleneck.
const THREADS: usize = 2;

/// A running service. Dropping it stops it.
pub struct Background {
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl Background {
    /// Serves `engine` on `address`, `127.0.0.1:8372` or the like; port 0 takes a free one. Returns once it listens.
    ///
    /// # Errors
    /// `Busy` if the address is taken; `Io` if it can't be listened on; as [`super::check`].
    pub fn start(engine: Engine, address: &str) -> Result<Background> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("apa-http")
            .enable_all()
            .build()
            .map_err(|e| Error::nomem(format!("can't start the threads of the service: {e}")))?;
        let config = engine.config().http.clone();
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::busy(format!("{address} is in use")),
            std::io::ErrorKind::InvalidInput => Error::arg(format!("{address:.64} is no address, expected HOST:PORT")),
            _ => Error::from(e).context(format!("can't listen on {address:.64}")),
        })?;
        let address = listener.local_addr()?;
        super::check(&config, address)?;
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let stopped = async move { drop(stopped.await) };
            let served = runtime.block_on(super::serve(engine, listener, &config, stopped));
            // Requests that still block (a training step) end with the engine rather than with the service.
            runtime.shutdown_background();
            served
        };
        let thread = std::thread::Builder::new().name("apa-http".into()).spawn(work)?;
        Ok(Background { address, running: Mutex::new(Some(Running { stop, thread })) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the service: refuses new connections and gives running answers 30 seconds. Idempotent.
    ///
    /// # Errors
    /// `Io` if the service had failed.
    pub fn stop(&self) -> Result<()> {
        let running = lock(&self.running).take();
        let Some(Running { stop, thread }) = running else { return Ok(()) };
        // Fails only if the service ended by itself.
        let _ = stop.send(());
        thread.join().unwrap_or_else(|_| Err(Error::panic("a bug stopped the service; the log has the details")))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "the service had failed");
        }
    }
}
