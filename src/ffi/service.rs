//! The HTTP service beside an embedded engine, if it runs. Absent without the `daemon` feature.

use std::sync::Mutex;

use crate::Engine;
use crate::error::{Error, Result};
#[cfg(feature = "daemon")]
use crate::http::Background;
use crate::lock::lock;

/// Stands for the service in builds without it.
#[cfg(not(feature = "daemon"))]
struct Background;

#[cfg(not(feature = "daemon"))]
impl Background {
    fn start(_: Engine, _: &str) -> Result<Self> {
        Err(Error::unsupported("this build has no HTTP service, expected the feature daemon"))
    }
    fn address(&self) -> &'static str {
        ""
    }
    fn stop(&self) -> Result<()> {
        Ok(())
    }
}

/// The service of an engine, if it runs.
#[derive(Default)]
pub(super) struct Service(Mutex<Option<Background>>);

impl Service {
    /// Serves `engine` at `address`, and returns the address it listens on.
    pub(super) fn start(&self, engine: &Engine, address: &str) -> Result<String> {
        let mut running = lock(&self.0);
        if running.is_some() {
            return Err(Error::busy("the HTTP service runs already, expected apa_http_stop before"));
        }
        engine.check_open()?;
        let started = Background::start(engine.clone(), address)?;
        let bound = started.address().to_string();
        *running = Some(started);
        Ok(bound)
    }

    /// Stops the service, if it runs.
    pub(super) fn stop(&self) -> Result<()> {
        let running = lock(&self.0).take();
        running.map_or(Ok(()), |service| service.stop())
    }
}
