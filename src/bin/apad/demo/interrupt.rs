//! Ctrl-C while the demo runs: the first one ends what is under way, so that the demo can put its things away; a second
//! one ends the process at once. Puts nothing away itself.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::Interrupted;

/// Whether Ctrl-C was pressed.
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Listens from now on, for the rest of the process.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub fn listen() -> Result<Self> {
        let mut pressed = signal(SignalKind::interrupt())?;
        let (first, interrupted) = watch::channel(false);
        tokio::spawn(async move {
            pressed.recv().await;
            first.send_replace(true);
            pressed.recv().await;
            apa::llama::exit_at_once(130);
        });
        Ok(Self(interrupted))
    }

    /// The outcome of some work, or [`Interrupted`] if Ctrl-C comes first; the work is dropped then.
    ///
    /// # Errors
    /// What the work says, or `Interrupted`.
    pub async fn or<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut interrupted = self.0.clone();
        tokio::select! {
            biased;
            _ = interrupted.wait_for(|pressed| *pressed) => Err(Interrupted.into()),
            outcome = work => outcome,
        }
    }
}
