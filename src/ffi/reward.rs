//! Rewards from the application: put by hand for a job, or computed by a function that is called for each answer. Never
//! scores anything itself.

use std::ffi::{c_char, c_void};

use super::args;
use super::engine::{apa_engine, engine};
use super::error::{apa_error, apa_status};
use super::guard::guard;
use super::hook::UserData;
use super::scorer;
use crate::types::GenerationId;

/// Called with each answer that ended normally (JSON as in `apa_rewards_open`, not NUL-terminated, valid until it
/// returns), one call at a time, on a thread used for nothing else, so it may take its time. 0: `*reward`, from -1 to
/// 1, is the answer's reward. Positive: the answer gets none. Negative: the function failed; the event feed reports it,
/// and the answer gets none. It may call only `apa_gen_cancel` and the frees, and must not leave by an exception or
/// `longjmp`.
pub type apa_reward_fn = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        answer_json: *const c_char,
        answer_json_len: usize,
        reward: *mut f64,
    ) -> i32,
>;

/// Gives the answer `generation_id` a reward from -1 to 1, recorded as an anonymous rating (`apa_feedback` without
/// `user`); it is durable on disk when this returns. The last one counts, averaged with users' ratings.
///
/// Errors: `APA_ERR_ARG` for an unknown answer or a reward out of range; `APA_ERR_IO` if it could not be written;
/// `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_reward_put(
    engine: *const apa_engine,
    generation_id: *const c_char,
    generation_id_len: usize,
    reward: f64,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: text is readable and `error` NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let engine = self::engine(engine)?;
            let id = args::text("generation_id", generation_id, generation_id_len)?;
            scorer::put(&engine, GenerationId(id.to_owned()), reward)?;
            Ok(apa_status::APA_OK)
        })
    }
}

/// Registers `reward`, which is called with `user_data` for each answer from now on; its rewards are recorded as by
/// `apa_reward_put`. There is one function per engine, and this replaces it; NULL and shutdown remove it. When this or
/// the shutdown returns, the earlier one is not running and never will be.
///
/// Errors: `APA_ERR_BUSY` as `apa_rewards_open`; `APA_ERR_CLOSED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apa_reward_set(
    engine: *const apa_engine,
    reward: apa_reward_fn,
    user_data: *mut c_void,
    error: *mut *mut apa_error,
) -> apa_status {
    // SAFETY: `error` is NULL or writable, by the header's contract.
    unsafe {
        guard(error, || {
            let object = self::engine(engine)?;
            match reward {
                Some(function) => object.scorer.start(&object, function, UserData(user_data))?,
                None => object.scorer.stop(),
            }
            Ok(apa_status::APA_OK)
        })
    }
}
