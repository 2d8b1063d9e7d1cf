//! Reads feedback, preferences and samples, and decisions about users. Never stores anything.

use super::fields::Fields;
use super::{Prompt, Unknown, one_prompt, prompt_of};
use crate::Engine;
use crate::engine::NewSample;
use crate::error::{Error, Result};
use crate::ledger::ReviewVerdict;
use crate::types::{GenerationId, NewFeedback, RATINGS, Sampling, Signal};

/// Fields of feedback.
pub(crate) const FEEDBACK_FIELDS: &[&str] =
    &["generation_id", "rating", "thumbs", "correction", "signal", "user", "comment"];

/// Fields of a preference.
pub(crate) const PREFERENCE_FIELDS: &[&str] = &["chosen_id", "rejected_id", "user"];

/// Fields of a request to forget.
pub(crate) const FORGET_FIELDS: &[&str] = &["user", "unlearn", "dry_run"];

/// Fields of a decision.
pub(crate) const REVIEW_FIELDS: &[&str] = &["user", "verdict"];

/// Fields of a sample.
pub(crate) const SAMPLE_FIELDS: &[&str] =
    &["messages", "prompt", "completion", "reward", "temperature", "user", "parse_special"];

/// An answer that was made elsewhere, checked as far as possible without the model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedSample {
    /// The prompt.
    pub prompt: Prompt,
    /// The answer: text or tokens. Text that answers a chat ends with the model's end-of-turn token.
    pub completion: Prompt,
    /// Its reward, in [-1, 1].
    pub reward: Option<f64>,
    /// The temperature at which it is trained; 1 if unset.
    pub temperature: Option<f32>,
    /// The user it was for.
    pub user: Option<String>,
}

impl ParsedSample {
    /// Tokenizes it with the engine's model.
    ///
    /// # Errors
    /// As [`Engine::chat_prompt`] and [`Engine::tokenize`].
    pub fn resolve(self, engine: &Engine) -> Result<NewSample> {
        let ends_turn = matches!(self.prompt, Prompt::Chat(_));
        let response = match self.completion {
            Prompt::Text(text) => engine.completion_tokens(&text, ends_turn)?,
            other => other.tokens(engine)?,
        };
        Ok(NewSample {
            prompt: self.prompt.tokens(engine)?,
            response,
            reward: self.reward,
            temperature: self.temperature.unwrap_or(1.0),
            user: self.user,
        })
    }
}

/// A preference: one answer is better than another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// The better answer.
    pub chosen: GenerationId,
    /// The worse answer.
    pub rejected: GenerationId,
    /// The user who gave it.
    pub user: Option<String>,
}

/// Reads `{generation_id, rating | thumbs: "up"|"down" | correction, user?, comment?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_feedback(body: &[u8]) -> Result<NewFeedback> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let generation_id = fields.id("generation_id")?;
    let rating = fields.number("rating", &RATINGS)?;
    let thumbs = match fields.string("thumbs")?.as_deref() {
        None => None,
        Some("up") => Some(1.0),
        Some("down") => Some(-1.0),
        Some(other) => return Err(Error::arg(format!("thumbs is {other:?}, expected \"up\" or \"down\""))),
    };
    const ONE: &str = "expected one of rating, thumbs, correction and signal";
    let (correction, named) = (fields.string("correction")?, fields.string("signal")?);
    let (user, comment) = (fields.user()?, fields.string("comment")?);
    let said = [
        rating.map(Signal::Rating),
        thumbs.map(Signal::Rating),
        correction.map(Signal::Correction),
        named.map(Signal::Named),
    ];
    let mut said = said.into_iter().flatten();
    let signal = match (said.next(), said.next(), &comment) {
        (Some(signal), None, _) => signal,
        (None, _, Some(_)) => Signal::Comment,
        (None, _, None) => {
            let nothing = || Error::arg(format!("the feedback says nothing, {ONE}, or a comment"));
            return Err(fields.mistyped(FEEDBACK_FIELDS).unwrap_or_else(nothing));
        }
        _ => return Err(Error::arg(format!("the feedback says several things, {ONE}"))),
    };
    fields.finish(FEEDBACK_FIELDS)?;
    Ok(NewFeedback { generation_id, signal, user, comment })
}

/// Reads `{chosen_id, rejected_id, user?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_preference(body: &[u8]) -> Result<Preference> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let (chosen, rejected) = (fields.id("chosen_id")?, fields.id("rejected_id")?);
    if chosen == rejected {
        return Err(Error::arg("chosen_id and rejected_id are the same generation, expected two"));
    }
    let user = fields.user()?;
    fields.finish(PREFERENCE_FIELDS)?;
    Ok(Preference { chosen, rejected, user })
}

/// Whose data is deleted, and whether what was learned from it goes too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forget {
    /// The user.
    pub user: String,
    /// Whether versions that learned from the user are replaced.
    pub unlearn: bool,
    /// Whether only to tell what that takes.
    pub dry_run: bool,
}

/// Reads `{user, unlearn?, dry_run?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_forget(body: &[u8]) -> Result<Forget> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let user = fields.user()?.ok_or_else(|| fields.missing("user"))?;
    let (unlearn, dry_run) = (fields.flag("unlearn")?, fields.flag("dry_run")?);
    fields.finish(FORGET_FIELDS)?;
    if dry_run && !unlearn {
        return Err(Error::arg("dry_run tells what unlearn takes, expected unlearn with it"));
    }
    Ok(Forget { user, unlearn, dry_run })
}

/// Reads `{user, verdict}`: a decision about a user's feedback, `trust`, `hold` or `reject`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_review(body: &[u8]) -> Result<(String, ReviewVerdict)> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let user = fields.user()?.ok_or_else(|| fields.missing("user"))?;
    let verdict = match fields.string("verdict")?.as_deref() {
        Some("trust") => ReviewVerdict::Trust,
        Some("hold") => ReviewVerdict::Hold,
        Some("reject") => ReviewVerdict::Reject,
        _ => return Err(Error::arg("verdict is missing or unknown, expected trust, hold or reject")),
    };
    fields.finish(REVIEW_FIELDS)?;
    Ok((user, verdict))
}

/// Reads `{messages | prompt, completion: text or tokens, reward?: -1..1, temperature?, user?}`.
///
/// # Errors
/// `Arg` names the field and what was expected.
pub fn parse_sample(body: &[u8]) -> Result<ParsedSample> {
    let mut fields = Fields::parse(body, Unknown::Refuse)?;
    let prompt = one_prompt(&mut fields, "sample")?;
    let completion = fields.required("completion")?;
    let sample = ParsedSample {
        prompt,
        completion: prompt_of("completion", completion, false)?,
        reward: fields.number("reward", &RATINGS)?,
        temperature: fields.float("temperature", &Sampling::TEMPERATURE)?,
        user: fields.user()?,
    };
    fields.finish(SAMPLE_FIELDS)?;
    Ok(sample)
}
