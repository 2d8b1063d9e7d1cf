//! Tracks whose answers are running, so that forgetting a user reaches them too. Never stops one.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::error::Result;
use crate::lock::lock;
use crate::types::{GenerateRequest, GenerationId};

/// Answers between submission and record; never more than are queued or being decoded.
#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<GenerationId, Asked>>);

struct Asked {
    user: Option<String>,
    /// See [`GenerateRequest::origin`].
    origin: Option<GenerationId>,
    forgotten: bool,
}

impl InFlight {
    /// Registers the user and the origin of an answer, then has `submit` queue it.
    pub(super) fn submit<T>(
        &self,
        id: GenerationId,
        request: GenerateRequest,
        submit: impl FnOnce(GenerationId, GenerateRequest) -> Result<T>,
    ) -> Result<T> {
        // Others can't be forgotten.
        if request.user.is_none() && request.origin.is_none() {
            return submit(id, request);
        }
        let asked = Asked { user: request.user.clone(), origin: request.origin.clone(), forgotten: false };
        lock(&self.0).insert(id.clone(), asked);
        submit(id.clone(), request).inspect_err(|_| {
            lock(&self.0).remove(&id);
        })
    }

    /// Marks the user's running answers, so that they are not recorded.
    pub(super) fn forget(&self, user: &str) {
        let theirs = |asked: &&mut Asked| asked.user.as_deref() == Some(user);
        lock(&self.0).values_mut().filter(theirs).for_each(|asked| asked.forgotten = true);
    }

    /// Ends an answer: calls `record` with whether its user was forgotten meanwhile, and with its origin. No user can
    /// be forgotten until it returns.
    pub(super) fn ended(&self, id: &GenerationId, record: impl FnOnce(bool, Option<GenerationId>)) {
        let mut asked = lock(&self.0);
        let (forgotten, origin) = asked.remove(id).map(|asked| (asked.forgotten, asked.origin)).unwrap_or_default();
        record(forgotten, origin);
    }
}
