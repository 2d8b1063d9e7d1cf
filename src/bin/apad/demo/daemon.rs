//! The daemon that the demo talks to: the engine and its HTTP service in this process, on a free port of this machine.

use anyhow::{Context, Result};
use apa::config::Config;
use apa::{Engine, http};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::client::Client;

/// A running daemon.
pub struct Daemon {
    /// Talks to it.
    pub client: Client,
    /// Where it listens.
    pub url: String,
    engine: Engine,
    stop: oneshot::Sender<()>,
    server: JoinHandle<apa::Result<()>>,
}

impl Daemon {
    /// Opens the engine and serves it.
    pub async fn start(config: Config) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port on the loopback address")?;
        let url = format!("http://{}", listener.local_addr()?);
        let service = config.http.clone();
        let engine = spawn_blocking(move || Engine::open(config)).await??;
        let (stop, stopped) = oneshot::channel();
        let served = engine.clone();
        let server = tokio::spawn(async move {
            http::serve(served, listener, &service, async move {
                let _ = stopped.await;
            })
            .await
        });
        Ok(Self { client: Client::new(&url)?, url, engine, stop, server })
    }

    /// The engine behind the service, for what HTTP does not expose.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Ends the service, then the engine.
    pub async fn stop(self) -> Result<()> {
        // Draining waits for open connections, and the client's pool holds some.
        drop(self.client);
        let _ = self.stop.send(());
        self.server.await??;
        spawn_blocking(move || self.engine.shutdown()).await?;
        Ok(())
    }
}
