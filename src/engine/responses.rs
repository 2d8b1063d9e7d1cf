//! Responses that later ones go on from. Never generates one.

use serde_json::Value;

use super::Engine;
use crate::error::{Error, Result};
use crate::ledger::KeptResponse;
use crate::types::GenerationId;

impl Engine {
    /// Keeps what a response said, so that another may go on from it.
    ///
    /// # Errors
    /// `Arg` for one that is too long to be kept, `Closed`.
    pub fn keep_response(&self, id: &GenerationId, kept: &KeptResponse) -> Result<()> {
        self.inner.ledger.keep_response(id, kept)
    }

    /// A response that is kept.
    ///
    /// # Errors
    /// An unknown id if it is not kept; `Io` if the ledger can't be read, `Closed`.
    pub fn response(&self, id: &GenerationId) -> Result<KeptResponse> {
        self.inner.ledger.response(id)?.ok_or_else(|| unknown(id))
    }

    /// All that was said up to a response, as messages of a chat, oldest first.
    ///
    /// # Errors
    /// As [`Engine::response`], also if one before it is not kept; `Arg` if it is more than any context holds.
    pub fn said_until(&self, id: &GenerationId) -> Result<Vec<Value>> {
        self.inner.ledger.conversation(id)?.ok_or_else(|| unknown(id))
    }

    /// Forgets what a response said; its answer stays on record.
    ///
    /// # Errors
    /// As [`Engine::response`].
    pub fn drop_response(&self, id: &GenerationId) -> Result<()> {
        if self.inner.ledger.drop_response(id)? { Ok(()) } else { Err(unknown(id)) }
    }
}

fn unknown(id: &GenerationId) -> Error {
    Error::unknown_id(format!("response {:.64}, or one before it, is not kept", id.0))
}
