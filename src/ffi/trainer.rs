//! Training: starting, stopping, stepping and watching it from C. Never trains itself.

use super::args;
use super::engine::{apa_engine, engine, put_json};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::strings::apa_string;

/// Lets the engine train by itself whenever `train.batch` new ratings are in, as it does from the start unless the
/// option `train.auto` is false. Returns at once.
///
/// Errors: `APA_ERR_UNSUPPORTED` if training is off (`train.enabled`); `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_trainer_start(engine: *const apa_engine, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe { guard(error, || self::engine(engine)?.start_trainer().map(|()| apa_status::APA_OK)) }
}

/// Lets the engine train only when `apa_trainer_step` is called, from now on; ratings are kept. A running step
/// continues to its end, which is not waited for.
///
/// Errors: `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_trainer_stop(engine: *const apa_engine, error: *mut *mut apa_error) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe { guard(error, || self::engine(engine)?.stop_trainer().map(|()| apa_status::APA_OK)) }
}

/// Trains on the waiting ratings (at most one batch, even a small one), publishes, and returns when the new version is
/// served. Blocks for seconds to minutes; generations continue meanwhile. With `train.auto` (the default) the engine
/// does this by itself whenever `train.batch` new ratings are in. `outcome` (may be NULL) gets a JSON object: `outcome`
/// is `published`, with `version` and `metrics`; `pending`, with `version`, `ruling` (`trial` or `proposed`), `reason`
/// and `metrics`; or `skipped`, with `reason` and `consumed`.
///
/// Errors: `APA_ERR_TRAIN` if training failed; `APA_ERR_UNSUPPORTED` if this model can't be trained, or training is
/// off; `APA_ERR_CLOSED`. Serving goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_trainer_step(
    engine: *const apa_engine,
    outcome: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe { guard(error, || put_json(outcome, &self::engine(engine)?.train_step()?)) }
}

/// Writes the state of the trainer as a JSON object: `state` (`off`, `unsupported`, `loading`, `idle`, `training`),
/// `reason`, `auto` (whether it trains by itself), `pending_ratings`, `batch`, `steps`, `skipped`, `rolled_back`
/// (versions whose ratings fell), `trial` (the candidate on trial, or null), `proposals` (versions that wait for a
/// person), `unlearning` (how far the replacement of versions that learned from a forgotten user is, or null),
/// `unlearned` (how the last one ended: `version` and `reason`), `refused` (by the gate), `panics` (of the trainer's
/// thread), `dropped_steps`, `seconds` (of work), `waited_seconds` (that its threads, summed, were ready but waited for
/// a core), `reward` (the reward model), `last` (measurements of the newest step; lengths in tokens, KL in nats, times
/// in seconds).
///
/// Errors: `APA_ERR_CLOSED` if `engine` was freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_trainer_status(
    engine: *const apa_engine,
    json: *mut *mut apa_string,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: the out-parameters are NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            args::required("json", json)?;
            put_json(json, &self::engine(engine)?.status().trainer)
        })
    }
}
