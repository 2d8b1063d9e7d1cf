//! What was said in responses, so that later ones go on from them. Bounded; goes with the answer that it belongs to.

use serde_json::Value;

use super::Ledger;
use super::db::Db;
use crate::error::{Error, Result};
use crate::types::GenerationId;

/// Most responses that are kept: the newest.
const KEPT: usize = 4096;
/// Most that one of them may have said, in bytes of JSON.
pub(crate) const MAX_RESPONSE: usize = 64 << 10;
/// Most that a conversation may have said, in bytes of JSON: more than any context holds.
const MAX_CONVERSATION: usize = 8 << 20;

/// A response that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptResponse {
    /// The response that it went on from.
    pub previous: Option<GenerationId>,
    /// Its input and its answer, as messages of a chat.
    pub said: Vec<Value>,
    /// The response as the client got it.
    pub body: Value,
}

impl Ledger {
    /// Keeps a response; later calls know it. It is on disk when the ledger has written what is queued. One whose
    /// answer is not on record is not kept.
    ///
    /// # Errors
    /// `Arg` for one over [`MAX_RESPONSE`], `Closed`.
    pub fn keep_response(&self, id: &GenerationId, kept: &KeptResponse) -> Result<()> {
        let (said, body) = (Value::from(kept.said.clone()).to_string(), kept.body.to_string());
        let length = said.len() + body.len();
        if length > MAX_RESPONSE {
            return Err(Error::arg(format!("the response has {length} bytes, expected at most {MAX_RESPONSE}")));
        }
        let (id, previous) = (id.0.clone(), kept.previous.as_ref().map(|id| id.0.clone()));
        let work = move |db: &Db| {
            let insert = "INSERT INTO responses (generation, previous, said, body)
                          SELECT seq, ?2, ?3, ?4 FROM generations WHERE id = ?1
                          ON CONFLICT (generation) DO UPDATE
                          SET previous = excluded.previous, said = excluded.said, body = excluded.body";
            db.execute(insert, (&id, &previous, &said, &body))?;
            let bound = "DELETE FROM responses WHERE generation <=
                         (SELECT generation FROM responses ORDER BY generation DESC LIMIT 1 OFFSET ?1)";
            db.execute(bound, [KEPT as i64])?;
            Ok(())
        };
        let told = |result: Result<()>| {
            if let Err(error) = result {
                tracing::error!(%error, "a response could not be kept; none can go on from it");
            }
        };
        self.writer.submit(work, told)
    }

    /// A response that is kept.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read, `Closed`.
    pub fn response(&self, id: &GenerationId) -> Result<Option<KeptResponse>> {
        let id = id.clone();
        // Behind what is queued, so that a response that a client knows is found.
        self.writer.call(move |db| kept(db, &id))
    }

    /// All that was said up to a response, oldest first; `None` if it or one before it is not kept.
    ///
    /// # Errors
    /// As [`Ledger::response`]; `Arg` if it is more than any context holds.
    pub fn conversation(&self, id: &GenerationId) -> Result<Option<Vec<Value>>> {
        let id = id.clone();
        let work = move |db: &Db| {
            let (mut said, mut next, mut length) = (Vec::new(), Some(id), 0);
            while let Some(id) = next {
                let Some(one) = kept(db, &id)? else { return Ok(None) };
                length += one.said.iter().map(|message| message.to_string().len()).sum::<usize>().max(1);
                if length > MAX_CONVERSATION || said.len() > KEPT {
                    return Err(Error::context_length(format!(
                        "the responses before this one have more than {MAX_CONVERSATION} bytes"
                    )));
                }
                said.push(one.said);
                next = one.previous;
            }
            Ok(Some(said.into_iter().rev().flatten().collect()))
        };
        self.writer.call(work)
    }

    /// Forgets what a response said, and returns whether it was kept. Its answer stays.
    ///
    /// # Errors
    /// As [`Ledger::response`].
    pub fn drop_response(&self, id: &GenerationId) -> Result<bool> {
        let id = id.0.clone();
        let work = move |db: &Db| {
            let sql = "DELETE FROM responses WHERE generation = (SELECT seq FROM generations WHERE id = ?1)";
            Ok(db.execute(sql, [&id])? > 0)
        };
        self.writer.call(work)
    }
}

fn kept(db: &Db, id: &GenerationId) -> Result<Option<KeptResponse>> {
    let sql = "SELECT r.previous, r.said, r.body FROM responses r
               JOIN generations g ON g.seq = r.generation WHERE g.id = ?1";
    let row = db.first(sql, [&id.0], |row| Ok((row.maybe(0)?, row.get::<String>(1)?, row.get::<String>(2)?)))?;
    let Some((previous, said, body)) = row else { return Ok(None) };
    let damaged = |e: serde_json::Error| Error::io(format!("response {:.64} is damaged: {e}", id.0));
    Ok(Some(KeptResponse {
        previous: previous.map(GenerationId),
        said: serde_json::from_str(&said).map_err(damaged)?,
        body: serde_json::from_str(&body).map_err(damaged)?,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::ledger::home_tests::{Home, suite};
    use crate::types::Generation;

    fn answered(ledger: &Ledger, id: &str, user: &str) -> GenerationId {
        let id = GenerationId(id.into());
        let generation = Generation {
            id: id.clone(),
            policy_version: crate::types::PolicyVersion(0),
            prompt: vec![1],
            response: vec![2],
            text: "yes".into(),
            sampling: crate::types::Sampling::default(),
            finish: crate::types::FinishReason::Stop,
            user: Some(user.into()),
            created: 1,
            unrecorded: false,
        };
        ledger.record_generation(Arc::new(generation), Box::new(|result| result.unwrap())).unwrap();
        id
    }

    fn saying(text: &str, previous: Option<&GenerationId>) -> KeptResponse {
        let said = vec![json!({"role": "user", "content": text})];
        KeptResponse { previous: previous.cloned(), said, body: json!({"text": text}) }
    }

    fn a_conversation_is_put_together_and_goes_with_its_answers(home: &Home) {
        let ledger = home.open();
        let (first, second) = (answered(&ledger, "gen-1", "ann"), answered(&ledger, "gen-2", "bob"));
        ledger.keep_response(&first, &saying("a", None)).unwrap();
        ledger.keep_response(&second, &saying("b", Some(&first))).unwrap();
        let said = ledger.conversation(&second).unwrap().unwrap();
        assert_eq!(json!(said), json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]));
        assert_eq!(ledger.response(&second).unwrap(), Some(saying("b", Some(&first))));
        ledger.forget("ann").unwrap();
        assert_eq!((ledger.conversation(&second).unwrap(), ledger.response(&first).unwrap()), (None, None));
        assert!(ledger.drop_response(&second).unwrap() && !ledger.drop_response(&second).unwrap());
        assert!(ledger.generation(&second).unwrap().is_some());
        assert_eq!(ledger.conversation(&GenerationId("gen-9".into())).unwrap(), None);
    }

    fn what_is_kept_is_bounded(home: &Home) {
        let ledger = home.open();
        let id = answered(&ledger, "gen-1", "ann");
        assert!(ledger.keep_response(&id, &saying(&"x".repeat(MAX_RESPONSE), None)).is_err());
        for i in 0..KEPT + 3 {
            let id = answered(&ledger, &format!("gen-x{i}"), "ann");
            ledger.keep_response(&id, &saying("x", None)).unwrap();
        }
        let count = |db: &Db| db.one("SELECT count(*) FROM responses", (), |row| row.get::<i64>(0));
        assert_eq!(ledger.writer.call(count).unwrap(), KEPT as i64);
        // A circle, which only a damaged file holds, ends.
        let (a, b) = (answered(&ledger, "gen-a", "ann"), answered(&ledger, "gen-b", "ann"));
        ledger.keep_response(&a, &saying("a", Some(&b))).unwrap();
        ledger.keep_response(&b, &saying("b", Some(&a))).unwrap();
        assert!(ledger.conversation(&a).unwrap_err().is_context_length());
    }

    suite! {
        a_conversation_is_put_together_and_goes_with_its_answers
        what_is_kept_is_bounded
    }
}
