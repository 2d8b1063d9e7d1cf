/*
 * libapa: serves a language model and keeps aligning it with the people who use it.
 * Generated from src/ffi by cbindgen (`make header`); do not edit. C99, C++11.
 *
 * Handles. apa_engine, apa_gen, apa_feed, apa_options, apa_string and apa_error are opaque. Whoever gets one frees it, with the free of its
 *   type; every free takes NULL, and a second free is harmless. They may be freed in any order. A handle used after its free gives
 *   APA_ERR_CLOSED, never a crash; what never was a handle gives APA_ERR_ARG.
 * Status. A call that can fail returns apa_status and takes a last `apa_error **`, which may be NULL. An error is written there with
 *   a negative status only, a result with APA_OK or the outcome named with the call; otherwise they are left alone.
 * Text. What comes in is UTF-8 by pointer and length; APA_NTS as the length stands for a NUL at the end. It is read during the call
 *   only. What goes out is an apa_string: UTF-8 with its length and a NUL after it.
 * Threads. Every call is safe from any thread, also several on one handle, also a free or shutdown while another waits.
 * Nothing is printed, no signal is handled, and no panic crosses into C.
 */

#ifndef APA_H
#define APA_H

#include <stddef.h>
#include <stdint.h>

/** Length of text that ends at its NUL, for any `_len` parameter. */
#define APA_NTS SIZE_MAX

/**
 * The version of this header's interface: major in the high 16 bits, minor in the low 16.
 */
#define APA_ABI_VERSION 65538

/**
 * The outcome of a call. The numbers are stable and never reused. Zero is success; positive numbers are outcomes that
 * are not failures and have no `apa_error`; negative numbers are failures.
 */
enum apa_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Success.
     */
    APA_OK = 0,
    /**
     * The generation has ended; nothing more will come.
     */
    APA_DONE = 1,
    /**
     * Nothing came within the timeout.
     */
    APA_TIMEOUT = 2,
    /**
     * The generation has ended because it was cancelled.
     */
    APA_CANCELLED = 3,
    /**
     * The caller's input is wrong: an argument, an option, a request, an unknown id.
     */
    APA_ERR_ARG = -1,
    /**
     * The handle has been freed, or the engine has been shut down.
     */
    APA_ERR_CLOSED = -2,
    /**
     * A bounded resource is taken: the queue is full, the data folder is locked.
     */
    APA_ERR_BUSY = -3,
    /**
     * The model file is missing, damaged or of another kind, or it could not be run.
     */
    APA_ERR_MODEL = -4,
    /**
     * Training failed; serving is untouched.
     */
    APA_ERR_TRAIN = -5,
    /**
     * A file, the disk or the record failed.
     */
    APA_ERR_IO = -6,
    /**
     * A function of the application failed.
     */
    APA_ERR_CALLBACK = -7,
    /**
     * This build, model or architecture can't do that.
     */
    APA_ERR_UNSUPPORTED = -8,
    /**
     * Memory ran out.
     */
    APA_ERR_NOMEM = -9,
    /**
     * A bug of the library, caught at the boundary; the message says where. The library stays usable.
     */
    APA_ERR_PANIC = -10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum apa_status apa_status;
#else
typedef int32_t apa_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A serving, learning model. Owned by the caller who opened it, and freed with `apa_engine_free`; every call is safe
 * from any thread.
 */
typedef struct apa_engine apa_engine;

/**
 * An error: one sentence and its status. Owned by the caller who received it, and freed with `apa_error_free`; it may
 * be used from any thread. It never contains the text of prompts or answers.
 */
typedef struct apa_error apa_error;

/**
 * A bounded queue of events. It receives events from its opening on and keeps the newest 256: a caller that pulls too
 * slowly loses the oldest, and is told how many. Owned by the caller who opened it, and freed with `apa_feed_free`;
 * every call is safe from any thread, and threads that pull the same feed share its events.
 */
typedef struct apa_feed apa_feed;

/**
 * A running or ended generation. Owned by the caller who started it, and freed with `apa_gen_free`; every call is safe
 * from any thread, but threads that pull the same generation share its text.
 */
typedef struct apa_gen apa_gen;

/**
 * Settings for an engine to be opened. Keys are those of `apad.toml`, with their section: `model`, `data`,
 * `serve.slots`, `train.lambda`. Owned by the caller who made it, and freed with `apa_options_free`; an engine does
 * not refer to it once opened. Safe from any thread.
 */
typedef struct apa_options apa_options;

/**
 * Text made by the library: UTF-8, with its length, and a NUL after it. Owned by the caller who received it, and freed
 * with `apa_string_free`; it may be used from any thread.
 */
typedef struct apa_string apa_string;

/**
 * Called from a thread of the library when a generation has something to pull. It should set a flag, write to a pipe
 * or the like, and return, because decoding waits for it. It may call only `apa_gen_cancel` and the frees.
 */
typedef void (*apa_wake_fn)(void *user_data);

/**
 * Called by `apa_generate`, on its caller's thread, with more text: whole codepoints, not NUL-terminated, valid until
 * it returns. 0 continues; a positive number ends the generation as cancelled; a negative one ends it with
 * `APA_ERR_CALLBACK`. It may call any function of this library, and must not leave by an exception or `longjmp`.
 */
typedef int32_t (*apa_text_fn)(void *user_data, const char *text, size_t text_len);

/**
 * Called with each answer that ended normally (JSON as in `apa_rewards_open`, not NUL-terminated, valid until it
 * returns), one call at a time, on a thread used for nothing else, so it may take its time. 0: `*reward`, from -1 to
 * 1, is the answer's reward. Positive: the answer gets none. Negative: the function failed; the event feed reports it,
 * and the answer gets none. It may call only `apa_gen_cancel` and the frees, and must not leave by an exception or
 * `longjmp`.
 */
typedef int32_t (*apa_reward_fn)(void *user_data, const char *answer_json, size_t answer_json_len, double *reward);

/**
 * Called with each line of the log: its level (1 error, 2 warning, 3 information, 4 debugging, 5 tracing) and a JSON
 * object of `level`, `target`, `message` and the line's own fields; not NUL-terminated, valid until it returns. Called
 * on any thread, one call at a time. It must not call this library except for the frees.
 */
typedef void (*apa_log_fn)(void *user_data, int32_t level, const char *json, size_t json_len);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The interface version of the linked library. A program can use it if the major number equals that of
 * `APA_ABI_VERSION` and the minor number is at least that.
 */
uint32_t apa_abi_version(void);

/**
 * The library's own version, `"0.1.0"`; static, NUL-terminated.
 */
const char *apa_version(void);

/**
 * 1 if the library was built with a feature, else 0 (for an unknown name too). Names: `train`, `log`, `http`
 * (`apa_http_start`), `train-cuda` (training on a CUDA device), `serve-cuda` (serving on one).
 */
int32_t apa_has(const char *feature, size_t feature_len);

/**
 * The status of `error`. `APA_ERR_ARG` for NULL, `APA_ERR_CLOSED` once freed.
 */
apa_status apa_error_code(const apa_error *error);

/**
 * The message of `error`, NUL-terminated UTF-8, valid until `error` is freed. `""` for NULL or once freed.
 */
const char *apa_error_message(const apa_error *error);

/**
 * Frees `error`. NULL and a second free are harmless.
 */
void apa_error_free(apa_error *error);

/**
 * The text, NUL-terminated, valid until `string` is freed. `""` for NULL or once freed.
 */
const char *apa_string_data(const apa_string *string);

/**
 * The length in bytes, without the NUL at the end. 0 for NULL or once freed.
 */
size_t apa_string_len(const apa_string *string);

/**
 * Frees `string`. NULL and a second free are harmless.
 */
void apa_string_free(apa_string *string);

/**
 * Makes empty options: every setting except `model` has a default.
 *
 * Errors: `APA_ERR_ARG` if `options` is NULL.
 */
apa_status apa_options_new(apa_options **options, apa_error **error);

/**
 * Sets `key` from text as on a command line: `base.gguf`, `0.2`, `true`. The last setting of a key counts.
 *
 * Errors: `APA_ERR_ARG` for an unknown key (the nearest known one is named) or a value of another kind; the options
 * are as before then.
 */
apa_status apa_options_set(apa_options *options,
                           const char *key,
                           size_t key_len,
                           const char *value,
                           size_t value_len,
                           apa_error **error);

/**
 * Sets `key` from JSON: `0.2`, `"cpu"`, `{"lambda": 0.2, "batch": 8}` for a whole section. With an empty key the
 * object holds sections. The last setting of a key counts.
 *
 * Errors: as `apa_options_set`, and `APA_ERR_ARG` for what is not JSON.
 */
apa_status apa_options_set_json(apa_options *options,
                                const char *key,
                                size_t key_len,
                                const char *json,
                                size_t json_len,
                                apa_error **error);

/**
 * Frees `options`. NULL and a second free are harmless.
 */
void apa_options_free(apa_options *options);

/**
 * Opens the model and the data folder that the options name, recovers what was running, and starts the engine's
 * threads. Takes as long as the model takes to load.
 *
 * Errors: `APA_ERR_ARG` for settings out of range, and without `model`; `APA_ERR_MODEL` for a model file that is
 * missing, damaged or of another kind, and for a data folder that belongs to another model; `APA_ERR_UNSUPPORTED` for
 * a model that doesn't generate; `APA_ERR_BUSY` if another engine holds the data folder (the message says who);
 * `APA_ERR_IO` for the disk; `APA_ERR_NOMEM`; `APA_ERR_CLOSED` if `options` was freed.
 */
apa_status apa_engine_open(const apa_options *options, apa_engine **engine, apa_error **error);

/**
 * Stops the engine: new calls are refused, running generations end, every waiter wakes with `APA_ERR_CLOSED`. Returns
 * when its threads have ended and the data folder is free. A second time it does nothing. The handle stays to be
 * freed.
 *
 * Errors: `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_engine_shutdown(apa_engine *engine, apa_error **error);

/**
 * Shuts the engine down if that was not done, and frees it. Generations that were started on it end with
 * `APA_ERR_CLOSED` and are freed on their own, before or after. NULL and a second free are harmless. Inside a hook it
 * does not wait.
 */
void apa_engine_free(apa_engine *engine);

/**
 * Writes the state of the engine as a JSON object: `model`, `architecture`, `policy_version`, `serving_versions`,
 * `running` and `queued` (requests now), `completed`, `refused` (the queue was full), `generated_tokens`,
 * `prompt_tokens`, `drafted_tokens` (of answers, ahead), `accepted_tokens` (of those), `swaps` and `scheduler_panics`
 * (since the start), `cached_tokens`, `cache_capacity` (tokens),
 * `first_token`, `gap`, `gap_training` and `mask` (histograms of times, in seconds: to the first token, between two
 * tokens, those of the latter while the trainer worked, and what a format took to say which tokens may follow), `form`
 * (the weight format that is served), `trainer` (as `apa_trainer_status`), `alerts` (what is wrong and wants
 * attention, while serving goes on: objects with `kind`, a stable word, and `message`).
 *
 * Errors: `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_engine_status(const apa_engine *engine, apa_string **json, apa_error **error);

/**
 * Writes the numbers of `apa_engine_status` and more as text in the format that Prometheus reads.
 *
 * Errors: `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_engine_metrics(const apa_engine *engine, apa_string **text, apa_error **error);

/**
 * Counts the tokens of `text`, including the model's beginning-of-sequence token if it uses one.
 *
 * Errors: `APA_ERR_ARG` for text that is not UTF-8 or too long to be tokenized; `APA_ERR_CLOSED`.
 */
apa_status apa_token_count(const apa_engine *engine,
                           const char *text,
                           size_t text_len,
                           size_t *tokens,
                           apa_error **error);

/**
 * Applies the model's chat template to a JSON array of messages, `[{"role": "user", "content": "Hi"}]`, and writes the
 * text that the model would continue, a last message of the assistant included. `tokens`, which may be NULL, gets its
 * number of tokens.
 *
 * Errors: `APA_ERR_ARG` for messages that are malformed or that the template refuses; `APA_ERR_UNSUPPORTED` if the
 * model has no template; `APA_ERR_CLOSED`.
 */
apa_status apa_chat_render(const apa_engine *engine,
                           const char *messages_json,
                           size_t messages_json_len,
                           apa_string **text,
                           size_t *tokens,
                           apa_error **error);

/**
 * Queues a generation. The request is the JSON body of the HTTP service: `messages` (a chat) or `prompt` (plain text
 * or tokens), and optionally `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repeat_penalty`,
 * `frequency_penalty`, `presence_penalty`, `logit_bias`, `response_format` or `grammar` (GBNF), `logprobs` (with
 * `top_logprobs` in a chat), `seed`, `stop`, `ignore_eos`, `user`, `parse_special`, `n` (1), `model` (any); in a chat
 * also `tools` with `tool_choice`, `reasoning_format`, `continue_final_message` and `add_generation_prompt`. A last
 * message of the assistant that calls no tools is a part of the prompt, with which the answer goes on, unless
 * `continue_final_message` is false.
 *
 * Errors: `APA_ERR_ARG` for an unknown field or a value out of range (both named), an empty prompt, one longer than
 * the context, or a grammar that can't be used; `APA_ERR_BUSY` if the queue is full; `APA_ERR_UNSUPPORTED` for a chat
 * with a model that has no template; `APA_ERR_CLOSED`.
 */
apa_status apa_gen_start(const apa_engine *engine,
                         const char *request_json,
                         size_t request_json_len,
                         apa_gen **generation,
                         apa_error **error);

/**
 * Writes the id of the generation, which feedback refers to.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_id(const apa_gen *generation, apa_string **id, apa_error **error);

/**
 * Waits at most `timeout_ms` milliseconds for more text; 0 polls, a negative number waits without limit.
 *
 * `APA_OK`: `text` holds more text, in whole codepoints. `APA_TIMEOUT`: nothing yet. `APA_DONE`, `APA_CANCELLED`: the
 * generation has ended, and `apa_gen_result` has the details; every later call returns the same. `text` is written
 * with `APA_OK` only.
 *
 * Errors: `APA_ERR_CLOSED` if the engine was shut down or `generation` freed, also while waiting; `APA_ERR_MODEL` if
 * decoding failed.
 */
apa_status apa_gen_next(apa_gen *generation, int64_t timeout_ms, apa_string **text, apa_error **error);

/**
 * Writes the whole of a generation that has ended as a JSON object: `id`, `policy_version` (the weights that made
 * every token of it), `text`, `finish_reason` (`stop`, `length` or `cancelled`), `seed`, `usage` (`prompt_tokens`,
 * `completion_tokens`, `total_tokens`); if they were asked for, `logprobs`: an array with an object a token, as in a
 * chat completion's `logprobs.content`; if `text` calls tools, `tool_calls`, as in a chat completion's message; if it
 * begins with reasoning, `reasoning_content`; and where it is more than what is said to the user, `content`, which is
 * just that. Pulled pieces are those of `text`.
 * `recorded`, false, is there only if the answer could not be recorded (the disk is full, its user was forgotten): it
 * can't be rated then.
 *
 * Errors: `APA_ERR_BUSY` until `apa_gen_next` has given the end; the error that it ended with; `APA_ERR_CLOSED`.
 */
apa_status apa_gen_result(const apa_gen *generation, apa_string **json, apa_error **error);

/**
 * Cancels the generation. Text generated so far can still be pulled; then comes `APA_CANCELLED`. May be called from
 * any thread at any time, also while another waits in `apa_gen_next`, and from inside a hook. Does not wait.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_cancel(apa_gen *generation, apa_error **error);

/**
 * Registers `wake`, which is called with `user_data` whenever there is something to pull, at once if there already is;
 * then pull with a timeout of 0 until `APA_TIMEOUT`. It replaces the earlier hook; NULL removes it. Once this or
 * `apa_gen_free` returns, the earlier hook is not running and never will be, so these calls wait for one that is.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_set_wake(apa_gen *generation, apa_wake_fn wake, void *user_data, apa_error **error);

/**
 * Frees `generation`, cancelling it if it is running; another thread waiting in `apa_gen_next` gets `APA_ERR_CLOSED`.
 * NULL and a second free are harmless.
 */
void apa_gen_free(apa_gen *generation);

/**
 * Generates, blocking: `on_text` (may be NULL) is called with each piece on the calling thread, and `result` (may be
 * NULL) gets the JSON of `apa_gen_result`. The request is that of `apa_gen_start`.
 *
 * `APA_DONE`: the generation ended. `APA_CANCELLED`: `on_text` ended it; there is still a result.
 *
 * Errors: as `apa_gen_start` and `apa_gen_next`; `APA_ERR_CALLBACK` if `on_text` returned a negative number.
 */
apa_status apa_generate(const apa_engine *engine,
                        const char *request_json,
                        size_t request_json_len,
                        apa_text_fn on_text,
                        void *user_data,
                        apa_string **result,
                        apa_error **error);

/**
 * Records feedback; it is durable on disk when this returns. JSON: `generation_id`, one of `rating` (-1 to 1),
 * `thumbs` (`"up"`, `"down"`), `correction` (the answer as it should have been) and `signal` (the name of something a
 * user did, `"copied"`; the option `reward.signals` has what each name adds, others are kept only), and optionally
 * `user` and `comment`, which may also stand alone. All of it is kept; of a user's words of one kind on an answer the
 * last counts, and of several users the mean. `receipt` (may be NULL) gets `feedback_id`, `generation_id`,
 * `policy_version`, `replaces_earlier`, and, if a limit keeps it from teaching, the reason in `left_out`. While the
 * database of `ledger.url` is away it waits on this machine: `spooled` is true, and `feedback_id` 0.
 *
 * Errors: `APA_ERR_ARG` for an unknown generation or field, a rating out of range, or several things said at once;
 * `APA_ERR_IO` if it could not be written; `APA_ERR_CLOSED`.
 */
apa_status apa_feedback(const apa_engine *engine,
                        const char *feedback_json,
                        size_t feedback_json_len,
                        apa_string **receipt,
                        apa_error **error);

/**
 * Records that one answer is better than another; it is durable on disk when this returns. JSON: `chosen_id`,
 * `rejected_id`, and optionally `user`. `receipt` (may be NULL) gets `preference_id`.
 *
 * Errors: as `apa_feedback`.
 */
apa_status apa_preference(const apa_engine *engine,
                          const char *preference_json,
                          size_t preference_json_len,
                          apa_string **receipt,
                          apa_error **error);

/**
 * Records an answer that was made elsewhere, to be learned from like one of the engine's own; it is durable on disk
 * when this returns. JSON: `messages` or `prompt` (text or tokens), `completion` (text or tokens; text that answers a
 * chat gets the model's end-of-turn token), and optionally `reward` (-1 to 1; without it the sample waits for
 * `apa_feedback`), `temperature` (at which it is trained; 1) and `user`. `receipt` (may be NULL) gets `generation_id`,
 * `feedback_id` (or null) and `policy_version`, the version served when it came, under which it is recorded.
 *
 * Errors: `APA_ERR_ARG` for an unknown field, a value out of range, an empty prompt or completion, or more tokens than
 * the context holds; `APA_ERR_UNSUPPORTED` for a chat with a model that has no template; `APA_ERR_IO` if it could not
 * be written; `APA_ERR_CLOSED`.
 */
apa_status apa_sample_add(const apa_engine *engine,
                          const char *sample_json,
                          size_t sample_json_len,
                          apa_string **receipt,
                          apa_error **error);

/**
 * Deletes a user's data: the answers made for the user with their prompts, everyone's feedback on those, and the
 * user's feedback on other answers. It is overwritten on disk when this returns. Versions that were trained on it
 * remain. `receipt` (may be NULL) gets the numbers of deleted rows: `generations`, `feedback`, `preferences`,
 * `samples`; all are 0 for an unknown user. `overwritten` is false while another program is reading the ledger, whose
 * log, which still holds the data, is emptied when that ends. A running answer for the user is delivered but not
 * recorded.
 *
 * Errors: `APA_ERR_ARG` for an empty name; `APA_ERR_IO` if it could not be written; `APA_ERR_CLOSED`.
 */
apa_status apa_forget(const apa_engine *engine,
                      const char *user,
                      size_t user_len,
                      apa_string **receipt,
                      apa_error **error);

/**
 * Tells what it takes to forget a user with all that was learned from the user's words, and changes nothing. `plan`
 * gets `unlearning`: null if no version learned from the user, else `first` (the first version that did; it
 * and all later ones are removed), `back` (the last ancestor of the active version that did not), `start` (where the
 * replay begins), `versions` (how many are removed), `batches` and `answers` (what is trained on again), `wordless`
 * (answers of those that are no longer on record) and `seconds` (what those batches took at first).
 *
 * Errors: `APA_ERR_ARG` for an empty name; `APA_ERR_UNSUPPORTED` if a version that learned from the user was restored
 * or adopted, so that it can't be replaced; `APA_ERR_IO`; `APA_ERR_CLOSED`.
 */
apa_status apa_unlearn_plan(const apa_engine *engine,
                            const char *user,
                            size_t user_len,
                            apa_string **plan,
                            apa_error **error);

/**
 * Deletes a user's data as `apa_forget` does, and has the versions that learned from it replaced: the trainer goes
 * back to the last version that did not, trains on the recorded batches again without the user's samples, and judges
 * the result like any candidate; then those versions are removed. Returns once the data is deleted and the rest is
 * under way: `apa_trainer_status` has `unlearning` until it is done, the feed of events tells of each batch, and an
 * engine that is opened again resumes it. A running training step is aborted. `receipt` (may be NULL) gets what
 * `apa_forget` gives (`generations`, `feedback`, `preferences`, `samples`, `overwritten`), and `unlearning` as
 * `apa_unlearn_plan` gives it.
 *
 * Errors: as `apa_unlearn_plan`; `APA_ERR_BUSY` if a user is being unlearned; `APA_ERR_TRAIN` or `APA_ERR_UNSUPPORTED`
 * if there is no trainer. Nothing is deleted then.
 */
apa_status apa_unlearn(const apa_engine *engine,
                       const char *user,
                       size_t user_len,
                       apa_string **receipt,
                       apa_error **error);

/**
 * Lets the engine train by itself whenever `train.batch` new ratings are in, as it does from the start unless the
 * option `train.auto` is false. Returns at once.
 *
 * Errors: `APA_ERR_UNSUPPORTED` if training is off (`train.enabled`); `APA_ERR_CLOSED`.
 */
apa_status apa_trainer_start(const apa_engine *engine, apa_error **error);

/**
 * Lets the engine train only when `apa_trainer_step` is called, from now on; ratings are kept. A running step
 * continues to its end, which is not waited for.
 *
 * Errors: `APA_ERR_CLOSED`.
 */
apa_status apa_trainer_stop(const apa_engine *engine, apa_error **error);

/**
 * Trains on the waiting ratings (at most one batch, even a small one), publishes, and returns when the new version is
 * served. Blocks for seconds to minutes; generations continue meanwhile. With `train.auto` (the default) the engine
 * does this by itself whenever `train.batch` new ratings are in. `outcome` (may be NULL) gets a JSON object: `outcome`
 * is `published`, with `version` and `metrics`; `pending`, with `version`, `ruling` (`trial` or `proposed`), `reason`
 * and `metrics`; or `skipped`, with `reason` and `consumed`.
 *
 * Errors: `APA_ERR_TRAIN` if training failed; `APA_ERR_UNSUPPORTED` if this model can't be trained, or training is
 * off; `APA_ERR_CLOSED`. Serving goes on.
 */
apa_status apa_trainer_step(const apa_engine *engine, apa_string **outcome, apa_error **error);

/**
 * Writes the state of the trainer as a JSON object: `state` (`off`, `unsupported`, `loading`, `idle`, `training`),
 * `reason`, `auto` (whether it trains by itself), `pending_ratings`, `batch`, `steps`, `skipped`, `rolled_back`
 * (versions whose ratings fell), `trial` (the candidate on trial, or null), `proposals` (versions that wait for a
 * person), `unlearning` (how far the replacement of versions that learned from a forgotten user is, or null),
 * `unlearned` (how the last one ended: `version` and `reason`), `refused` (by the gate), `panics` (of the trainer's
 * thread), `dropped_steps`, `seconds` (of work), `waited_seconds` (that its threads, summed, were ready but waited for
 * a core), `reward` (the reward model), `last` (measurements of the newest step; lengths in tokens, KL in nats, times
 * in seconds).
 *
 * Errors: `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_trainer_status(const apa_engine *engine, apa_string **json, apa_error **error);

/**
 * Writes the version that new requests get. 0 is the initial model.
 *
 * Errors: `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_policy_version(const apa_engine *engine, uint64_t *version, apa_error **error);

/**
 * Brings the newest trained weights into serving now: when this returns, new requests get the newest version, also
 * after a rollback, and training continues from it. Does nothing if they already do, as is the case after every
 * publication unless somebody went back. Running generations finish on their version. If there is something to do, a
 * running training step is aborted, and its ratings keep waiting. `version` (may be NULL) gets the version that is
 * served.
 *
 * Errors: `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged, and the present version is served on;
 * `APA_ERR_CLOSED`.
 */
apa_status apa_policy_sync(const apa_engine *engine, uint64_t *version, apa_error **error);

/**
 * Serves `version` from now on, and trains on from it. Running generations finish on their version; a running training
 * step is aborted, and its ratings keep waiting. Returns when new requests get the version.
 *
 * Errors: `APA_ERR_ARG` for an unknown version; `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged;
 * `APA_ERR_CLOSED`.
 */
apa_status apa_policy_activate(const apa_engine *engine, uint64_t version, apa_error **error);

/**
 * Activates the version that the active one was trained from; `version` (may be NULL) gets it.
 *
 * Errors: `APA_ERR_ARG` if the initial model is active; else as `apa_policy_activate`.
 */
apa_status apa_policy_rollback(const apa_engine *engine, uint64_t *version, apa_error **error);

/**
 * Writes the files of `version` into one file, which another data folder with the same base model can restore. An
 * existing file at `path` is replaced; the file is written whole or not at all.
 *
 * Errors: `APA_ERR_ARG` for an unknown version, and for 0, which has no files; `APA_ERR_IO` if its files are gone or
 * damaged, or `path` can't be written; `APA_ERR_CLOSED`.
 */
apa_status apa_policy_snapshot(const apa_engine *engine,
                               uint64_t version,
                               const char *path,
                               size_t path_len,
                               apa_error **error);

/**
 * Reads a file of `apa_policy_snapshot` as a new version, whose parent is the active one, and serves it from now on.
 * `version` (may be NULL) gets its number. The file is checked against its own checksums.
 *
 * Errors: `APA_ERR_IO` if the file can't be read, is damaged, or is not a snapshot; `APA_ERR_MODEL` if it belongs to
 * another base model (nothing changes then) or can't be served (it is listed then, and the version before is served
 * on); `APA_ERR_CLOSED`.
 */
apa_status apa_policy_restore(const apa_engine *engine,
                              const char *path,
                              size_t path_len,
                              uint64_t *version,
                              apa_error **error);

/**
 * Writes a version as a JSON object: the fields of `apa_policy_list`, its `lineage` (its ancestors, the parent first)
 * and its `verdict`: `ruling` (`promoted`, `refused`, `trial`, `proposed`, `rolled_back`,
 * `unlearned`) and `record` with `reason`, `examination` and `trial`; null for a version that no gate has judged.
 *
 * Errors: `APA_ERR_ARG` for an unknown version; `APA_ERR_IO` if the record can't be read; `APA_ERR_CLOSED`.
 */
apa_status apa_policy_show(const apa_engine *engine, uint64_t version, apa_string **json, apa_error **error);

/**
 * Writes all versions as a JSON array, oldest first: `version`, `parent`, `active`, `created` (milliseconds since
 * 1970), `metrics`.
 *
 * Errors: `APA_ERR_IO` if the record can't be read; `APA_ERR_CLOSED`.
 */
apa_status apa_policy_list(const apa_engine *engine, apa_string **json, apa_error **error);

/**
 * Opens a feed of events about learning. Each event is a JSON object with `event`: `step_done` (`version`, `metrics`),
 * `step_dropped` (`reason`, `consumed`: a batch changed nothing), `version_published` (`version`, `parent`),
 * `version_activated` (`version`), `version_proposed` (`version`, `parent`, `reason`: it waits for a person),
 * `trial_started` (`version`, `parent`, `share` of the users), `trial_advanced` (`version`, `share`),
 * `version_refused` (`version` or null, `reason`), `version_rolled_back` (`version`, `parent`, `reason`: its ratings
 * fell), `unlearning` (`replayed`, `batches`: how far the replacement of versions is that learned from a forgotten
 * user), `unlearned` (`version`, `parent`, `reason`: they are removed), `error` (`code`, `message`), `missed`
 * (`count`: the oldest events were dropped).
 *
 * Errors: `APA_ERR_BUSY` if 64 feeds are open on the engine; `APA_ERR_CLOSED`.
 */
apa_status apa_events_open(const apa_engine *engine, apa_feed **feed, apa_error **error);

/**
 * Opens a feed of answers to score: reward jobs. Each answer that ends normally makes one, once it is on record: a
 * JSON object with `event` `answer`, `generation_id`, `policy_version`, `prompt` (as the model saw it), `text`,
 * `finish_reason`, `completion_tokens`, `user`; or `missed` (`count`), as above. `apa_reward_put` completes a job; an
 * answer whose job is never completed has no reward.
 *
 * Errors: as `apa_events_open`.
 */
apa_status apa_rewards_open(const apa_engine *engine, apa_feed **feed, apa_error **error);

/**
 * Waits at most `timeout_ms` milliseconds for an event; 0 polls, a negative number waits without limit.
 *
 * `APA_OK`: `json` holds an event. `APA_TIMEOUT`: there was none.
 *
 * Errors: `APA_ERR_CLOSED` if the engine was shut down or `feed` freed, also while waiting.
 */
apa_status apa_feed_next(apa_feed *feed, int64_t timeout_ms, apa_string **json, apa_error **error);

/**
 * Registers `wake`, which is called with `user_data` when there is an event to pull, and at the end; as
 * `apa_gen_set_wake`.
 *
 * Errors: `APA_ERR_CLOSED` if `feed` was freed.
 */
apa_status apa_feed_set_wake(apa_feed *feed, apa_wake_fn wake, void *user_data, apa_error **error);

/**
 * Frees `feed`; another thread waiting in `apa_feed_next` gets `APA_ERR_CLOSED`. NULL and a second free are harmless.
 */
void apa_feed_free(apa_feed *feed);

/**
 * Gives the answer `generation_id` a reward from -1 to 1, recorded as an anonymous rating (`apa_feedback` without
 * `user`); it is durable on disk when this returns. The last one counts, averaged with users' ratings.
 *
 * Errors: `APA_ERR_ARG` for an unknown answer or a reward out of range; `APA_ERR_IO` if it could not be written;
 * `APA_ERR_CLOSED`.
 */
apa_status apa_reward_put(const apa_engine *engine,
                          const char *generation_id,
                          size_t generation_id_len,
                          double reward,
                          apa_error **error);

/**
 * Registers `reward`, which is called with `user_data` for each answer from now on; its rewards are recorded as by
 * `apa_reward_put`. There is one function per engine, and this replaces it; NULL and shutdown remove it. When this or
 * the shutdown returns, the earlier one is not running and never will be.
 *
 * Errors: `APA_ERR_BUSY` as `apa_rewards_open`; `APA_ERR_CLOSED`.
 */
apa_status apa_reward_set(const apa_engine *engine, apa_reward_fn reward, void *user_data, apa_error **error);

/**
 * Serves the engine over HTTP, as `apad serve` does, on threads of its own. `address` is like `127.0.0.1:8372`, with
 * port 0 for a free one; empty for the option `http.listen`. Returns once it listens; `bound` (may be NULL) gets the
 * address. Beyond loopback, keys are required (option `http.keys`).
 *
 * Errors: `APA_ERR_UNSUPPORTED` if the library was built without HTTP (`apa_has("http")`); `APA_ERR_BUSY` if the
 * service is running already or the address is taken; `APA_ERR_ARG` for an invalid address, or one beyond loopback
 * without keys; `APA_ERR_IO`; `APA_ERR_CLOSED`.
 */
apa_status apa_http_start(const apa_engine *engine,
                          const char *address,
                          size_t address_len,
                          apa_string **bound,
                          apa_error **error);

/**
 * Stops the HTTP service: refuses new connections and gives running answers 30 seconds. Returns when it has stopped;
 * does nothing if it is not running. Shutting the engine down stops it too.
 *
 * Errors: `APA_ERR_IO` if the service had failed; `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_http_stop(const apa_engine *engine, apa_error **error);

/**
 * Registers `log`, which is called with `user_data` for each line of the log up to `level` (1 to 5). There is one hook
 * per process, and this replaces it; NULL removes it. When this returns, the earlier one is not running and never will
 * be. Without a hook nothing is logged.
 *
 * Errors: `APA_ERR_ARG` for another level; `APA_ERR_BUSY` if a Rust program around this library logs already.
 */
apa_status apa_log_set(int32_t level, apa_log_fn log, void *user_data, apa_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* APA_H */
