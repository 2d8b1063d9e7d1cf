//! Feedback on answers. Stores none of it: the ledger does.

use std::ffi::c_char;

use serde_json::json;

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::apa_string;
use crate::error::Error;
use crate::request::{parse_feedback, parse_preference, parse_sample};

/// Records feedback; it is durable on disk when this returns. JSON: `generation_id`, one of `rating` (-1 to 1),
/// `thumbs` (`"up"`, `"down"`), `correction` (the answer as it should have been) and `signal` (the name of something a
/// user did, `"copied"`; the option `reward.signals` has what each name adds, others are kept only), and optionally
/// `user` and `comment`, which may also stand alone. All of it is kept; of a user's words of one kind on an answer the
/// last counts, and of several users the mean. `receipt` (may be NULL) gets `feedback_id`, `generation_id`,
/// `policy_version`, `replaces_earlier`, and, if a limit keeps it from teaching, the reason in `left_out`. While the
/// database of `ledger.url` is away it waits on this machine: `spooled` is true, and `feedback_id` 0.
///
/// Errors: `APA_ERR_ARG` for an unknown generation or field, a rating out of range, or several things said at once;
/// `APA_ERR_IO` if it could not be written; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_feedback(
    engine: *const apa_engine,
    feedback_json: *const c_char,
    feedback_json_len: usize,
    receipt: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            let body = args::bytes("feedback_json", feedback_json, feedback_json_len)?;
            put_json(receipt, &engine.feedback(parse_feedback(body)?)?)
        })
    }
}

/// Records that one answer is better than another; it is durable on disk when this returns. JSON: `chosen_id`,
/// `rejected_id`, and optionally `user`. `receipt` (may be NULL) gets `preference_id`.
///
/// Errors: as `apa_feedback`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_preference(
    engine: *const apa_engine,
    preference_json: *const c_char,
    preference_json_len: usize,
    receipt: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            let body = args::bytes("preference_json", preference_json, preference_json_len)?;
            let preference = parse_preference(body)?;
            let id = engine.prefer(&preference.chosen, &preference.rejected, preference.user.as_deref())?;
            put_json(receipt, &json!({"preference_id": id}))
        })
    }
}

/// Records an answer that was made elsewhere, to be learned from like one of the engine's own; it is durable on disk
/// when this returns. JSON: `messages` or `prompt` (text or tokens), `completion` (text or tokens; text that answers a
/// chat gets the model's end-of-turn token), and optionally `reward` (-1 to 1; without it the sample waits for
/// `apa_feedback`), `temperature` (at which it is trained; 1) and `user`. `receipt` (may be NULL) gets `generation_id`,
/// `feedback_id` (or null) and `policy_version`, the version served when it came, under which it is recorded.
///
/// Errors: `APA_ERR_ARG` for an unknown field, a value out of range, an empty prompt or completion, or more tokens than
/// the context holds; `APA_ERR_UNSUPPORTED` for a chat with a model that has no template; `APA_ERR_IO` if it could not
/// be written; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_sample_add(
    engine: *const apa_engine,
    sample_json: *const c_char,
    sample_json_len: usize,
    receipt: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            let body = args::bytes("sample_json", sample_json, sample_json_len)?;
            put_json(receipt, &engine.add_sample(parse_sample(body)?.resolve(&engine)?)?)
        })
    }
}

/// Deletes a user's data: the answers made for the user with their prompts, everyone's feedback on those, and the
/// user's feedback on other answers. It is overwritten on disk when this returns. Versions that were trained on it
/// remain. `receipt` (may be NULL) gets the numbers of deleted rows: `generations`, `feedback`, `preferences`,
/// `samples`; all are 0 for an unknown user. `overwritten` is false while another program is reading the ledger, whose
/// log, which still holds the data, is emptied when that ends. A running answer for the user is delivered but not
/// recorded.
///
/// Errors: `APA_ERR_ARG` for an empty name; `APA_ERR_IO` if it could not be written; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_forget(
    engine: *const apa_engine,
    user: *const c_char,
    user_len: usize,
    receipt: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            match args::text("user", user, user_len)? {
                "" => Err(Error::arg("user is empty, expected a name")),
                user => put_json(receipt, &engine.forget(user)?),
            }
        })
    }
}

/// Tells what it takes to forget a user with all that was learned from the user's words, and changes nothing. `plan`
/// gets `unlearning`: null if no version learned from the user, else `first` (the first version that did; it
/// and all later ones are removed), `back` (the last ancestor of the active version that did not), `start` (where the
/// replay begins), `versions` (how many are removed), `batches` and `answers` (what is trained on again), `wordless`
/// (answers of those that are no longer on record) and `seconds` (what those batches took at first).
///
/// Errors: `APA_ERR_ARG` for an empty name; `APA_ERR_UNSUPPORTED` if a version that learned from the user was restored
/// or adopted, so that it can't be replaced; `APA_ERR_IO`; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_unlearn_plan(
    engine: *const apa_engine,
    user: *const c_char,
    user_len: usize,
    plan: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            match args::text("user", user, user_len)? {
                "" => Err(Error::arg("user is empty, expected a name")),
                user => put_json(plan, &serde_json::json!({"unlearning": engine.unlearn_plan(user)?})),
            }
        })
    }
}

/// Deletes a user's data as `apa_forget` does, and has the versions that learned from it replaced: the trainer goes
/// back to the last version that did not, trains on the recorded batches again without the user's samples, and judges
/// the result like any candidate; then those versions are removed. Returns once the data is deleted and the rest is
/// under way: `apa_trainer_status` has `unlearning` until it is done, the feed of events tells of each batch, and an
/// engine that is opened again resumes it. A running training step is aborted. `receipt` (may be NULL) gets what
/// `apa_forget` gives (`generations`, `feedback`, `preferences`, `samples`, `overwritten`), and `unlearning` as
/// `apa_unlearn_plan` gives it.
///
/// Errors: as `apa_unlearn_plan`; `APA_ERR_BUSY` if a user is being unlearned; `APA_ERR_TRAIN` or `APA_ERR_UNSUPPORTED`
/// if there is no trainer. Nothing is deleted then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_unlearn(
    engine: *const apa_engine,
    user: *const c_char,
    user_len: usize,
    receipt: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and the out-parameters NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            match args::text("user", user, user_len)? {
                "" => Err(Error::arg("user is empty, expected a name")),
                user => put_json(receipt, &engine.unlearn(user)?),
            }
        })
    }
}
