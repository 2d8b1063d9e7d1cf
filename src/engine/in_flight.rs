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
    user: String,
    forgotten: bool,
}

impl InFlight {
    /// Registers the user of an answer, then has `submit` queue it.
    pub(super) fn submit<T>(
        &self,
        id: GenerationId,
        request: GenerateRequest,
        submit: impl FnOnce(GenerationId, GenerateRequest) -> Result<T>,
    ) -> Result<T> {
        // Answers without a user can't be forgotten.
        let Some(user) = request.user.clone() else { return submit(id, request) };
        lock(&self.0).insert(id.clone(), Asked { user, forgotten: false });
        submit(id.clone(), request).inspect_err(|_| {
            lock(&self.0).remove(&id);
        })
    }

    /// Marks the user's running answers, so that they are not recorded.
    pub(super) fn forget(&self, user: &str) {
        lock(&self.0).values_mut().filter(|asked| asked.user == user).for_each(|asked| asked.forgotten = true);
    }

    /// Ends an answer: calls `record` with whether its user was forgotten meanwhile. No user can be forgotten until it
    /// returns.
    pub(super) fn ended(&self, id: &GenerationId, record: impl FnOnce(bool)) {
        let mut asked = lock(&self.0);
        let forgotten = asked.remove(id).is_some_and(|asked| asked.forgotten);
        record(forgotten);
    }
}
