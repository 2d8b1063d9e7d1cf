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
 * How a call ended. Numbers are stable and never reused. Zero is success; positive is an outcome that is no failure
 * and has no `apa_error`; negative is a failure.
 */
enum apa_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It was done.
     */
    APA_OK = 0,
    /**
     * The generation has ended; there is nothing more to come.
     */
    APA_DONE = 1,
    /**
     * Nothing came in the time given.
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
 * A serving, learning model. Owned by whoever opened it, who frees it with `apa_engine_free`; every call is safe from
 * any thread.
 */
typedef struct apa_engine apa_engine;

/**
 * What went wrong, in one sentence, and its status. Owned by whoever got it, who frees it with `apa_error_free`; it
 * may be handed to and used from any thread. It says nothing of the text of prompts and answers.
 */
typedef struct apa_error apa_error;

/**
 * A bounded queue of news. It gets what happens from its opening on and keeps the newest 256: whoever pulls too slowly
 * misses the oldest, and is told how many. Owned by whoever opened it, who frees it with `apa_feed_free`; every call
 * is safe from any thread, and of several threads in `apa_feed_next` each gets some of the news.
 */
typedef struct apa_feed apa_feed;

/**
 * A running or ended generation. Owned by whoever started it, who frees it with `apa_gen_free`; every call is safe
 * from any thread, though of several threads in `apa_gen_next` each gets only some of the text.
 */
typedef struct apa_gen apa_gen;

/**
 * Settings of an engine to be opened. Keys are those of `apad.toml`, the section first: `model`, `data`,
 * `serve.slots`, `train.lambda`. Owned by whoever made it, who frees it with `apa_options_free`; an engine keeps
 * nothing of it. Safe from any thread.
 */
typedef struct apa_options apa_options;

/**
 * Text made by the library: UTF-8, with its length, and a NUL after it. Owned by whoever got it, who frees it with
 * `apa_string_free`; it may be used from any thread.
 */
typedef struct apa_string apa_string;

/**
 * Called from a thread of the library when a generation has something to be pulled. It should set a flag, write to a
 * pipe or the like, and return: decoding waits for it. Of this library it may call only `apa_gen_cancel` and the
 * frees.
 */
typedef void (*apa_wake_fn)(void *user_data);

/**
 * Called by `apa_generate`, on the thread that called that, with more text: whole codepoints, not NUL-terminated,
 * valid until it returns. 0 goes on; a positive number ends the generation as cancelled; a negative one ends it with
 * `APA_ERR_CALLBACK`. It may call anything of this library, and must not leave by an exception or `longjmp`.
 */
typedef int32_t (*apa_text_fn)(void *user_data, const char *text, size_t text_len);

/**
 * Called with each answer that ended by itself (JSON as `apa_rewards_open` has it, not NUL-terminated, valid until it
 * returns), on a thread that does nothing else, one at a time: it may take its time. 0: `*reward`, from -1 to 1, is
 * what the answer is worth. Positive: it gets none. Negative: the function failed; the event feed is told, and the
 * answer gets none. Of this library it may call only `apa_gen_cancel` and the frees, and it must not leave by an
 * exception or `longjmp`.
 */
typedef int32_t (*apa_reward_fn)(void *user_data, const char *answer_json, size_t answer_json_len, double *reward);

/**
 * Called with each line of the log: its level (1 error, 2 warning, 3 information, 4 debugging, 5 tracing) and a JSON
 * object of `level`, `target`, `message` and the line's own fields; not NUL-terminated, valid until it returns. On any
 * thread, one at a time. It must not call this library except for the frees.
 */
typedef void (*apa_log_fn)(void *user_data, int32_t level, const char *json, size_t json_len);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The interface version of the library that is linked. A program runs with it if the major number is that of
 * `APA_ABI_VERSION` and the minor number at least that.
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
 * The status that `error` came with. `APA_ERR_ARG` for NULL, `APA_ERR_CLOSED` after its free.
 */
apa_status apa_error_code(const apa_error *error);

/**
 * The sentence, NUL-terminated UTF-8, valid until `error` is freed. `""` for NULL or after its free.
 */
const char *apa_error_message(const apa_error *error);

/**
 * Frees `error`. NULL and a second free are harmless.
 */
void apa_error_free(apa_error *error);

/**
 * The text, NUL-terminated, valid until `string` is freed. `""` for NULL or after its free.
 */
const char *apa_string_data(const apa_string *string);

/**
 * Its length in bytes, the NUL at the end not counted. 0 for NULL or after its free.
 */
size_t apa_string_len(const apa_string *string);

/**
 * Frees `string`. NULL and a second free are harmless.
 */
void apa_string_free(apa_string *string);

/**
 * Makes options that hold nothing yet: every setting has a default but `model`.
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
 * `prompt_tokens` and `swaps` (since the start), `cached_tokens`, `cache_capacity` (tokens), `first_token`, `gap` and
 * `gap_training` (histograms of times, in seconds: to the first token, between two tokens, and those of the latter
 * while the trainer worked), `form` (the weight format that is served), `trainer` (as `apa_trainer_status`), `alerts`
 * (what is wrong and wants attention, while serving goes on: objects with `kind`, a stable word, and `message`).
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
 * Counts the tokens that `text` is for the model, its beginning-of-sequence token included where it wants one.
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
 * text that the model would continue. `tokens`, which may be NULL, gets its number of tokens.
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
 * `top_logprobs` in a chat), `seed`, `stop`, `user`, `parse_special`, `n` (1), `model` (any); in a chat also `tools`
 * with `tool_choice`, `continue_final_message` and `add_generation_prompt`.
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
 * Writes the id of the generation, which names it for feedback.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_id(const apa_gen *generation, apa_string **id, apa_error **error);

/**
 * Waits at most `timeout_ms` milliseconds for more text; 0 only looks, a negative number waits without limit.
 *
 * `APA_OK`: `text` holds more, whole codepoints. `APA_TIMEOUT`: nothing yet. `APA_DONE`, `APA_CANCELLED`: it has
 * ended, and `apa_gen_result` says how; every later call says the same. `text` is written with `APA_OK` only.
 *
 * Errors: `APA_ERR_CLOSED` if the engine was shut down or `generation` freed, also while waiting; `APA_ERR_MODEL` if
 * decoding failed.
 */
apa_status apa_gen_next(apa_gen *generation, int64_t timeout_ms, apa_string **text, apa_error **error);

/**
 * Writes the whole of a generation that has ended as a JSON object: `id`, `policy_version` (the weights that made
 * every token of it), `text`, `finish_reason` (`stop`, `length` or `cancelled`), `seed`, `usage` (`prompt_tokens`,
 * `completion_tokens`, `total_tokens`); if they were asked for, `logprobs`: an array with an object a token, as in a
 * chat completion's `logprobs.content`; and, if `text` calls tools, `tool_calls`, as in a chat completion's message.
 * `recorded`, false, is there only if the answer could not be recorded (the disk is full, its user was forgotten): it
 * can't be rated then.
 *
 * Errors: `APA_ERR_BUSY` until `apa_gen_next` has given the end; the error that it ended with; `APA_ERR_CLOSED`.
 */
apa_status apa_gen_result(const apa_gen *generation, apa_string **json, apa_error **error);

/**
 * Asks the generation to end. What has been made is kept and can be pulled; then comes `APA_CANCELLED`. From any
 * thread, at any time, also while another waits in `apa_gen_next`, and from inside a hook. It does not wait.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_cancel(apa_gen *generation, apa_error **error);

/**
 * Has `wake` called, with `user_data`, whenever there is something to be pulled, and once now if there is already;
 * then pull with a timeout of 0 until `APA_TIMEOUT`. It replaces the earlier hook; NULL takes it back. Once this or
 * `apa_gen_free` returns, the earlier hook is not running and never will be; so these wait for one that is.
 *
 * Errors: `APA_ERR_CLOSED` if `generation` was freed.
 */
apa_status apa_gen_set_wake(apa_gen *generation, apa_wake_fn wake, void *user_data, apa_error **error);

/**
 * Frees `generation`, cancelling it if it still runs; another thread that waits in `apa_gen_next` gets
 * `APA_ERR_CLOSED`. NULL and a second free are harmless.
 */
void apa_gen_free(apa_gen *generation);

/**
 * Generates, blocking: `on_text` (may be NULL) is called with each piece on this thread, and `result` (may be NULL)
 * gets the JSON of `apa_gen_result`. The request is that of `apa_gen_start`.
 *
 * `APA_DONE`: it ended. `APA_CANCELLED`: `on_text` ended it; there is a result all the same.
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
 * `policy_version`, `replaces_earlier`, and, if a limit keeps it from teaching, the reason in `left_out`.
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
 * Deletes a user's words: the answers made for them with their prompts, what anyone said of those, and all they said
 * of others' answers. They are overwritten on disk when this returns. What remains are the versions that learned from
 * them. `receipt` (may be NULL) gets how many were deleted: `generations`, `feedback`, `preferences`, `samples`; all 0
 * for a user who is not known. `overwritten` is false while another program reads the ledger: its log, which held them
 * too, is emptied when that ends. An answer under way for the user is given and not recorded.
 *
 * Errors: `APA_ERR_ARG` for an empty name; `APA_ERR_IO` if it could not be written; `APA_ERR_CLOSED`.
 */
apa_status apa_forget(const apa_engine *engine,
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
 * Has the engine train only when `apa_trainer_step` is called, from now on; ratings are kept. A step under way goes on
 * to its end, and is not waited for.
 *
 * Errors: `APA_ERR_CLOSED`.
 */
apa_status apa_trainer_stop(const apa_engine *engine, apa_error **error);

/**
 * Trains on the ratings that are in (one batch at most, even a small one), publishes, and returns when the new version
 * is served. Blocks for as long as that takes, seconds to minutes; generations go on meanwhile. With `train.auto` (the
 * default) the engine does so by itself whenever `train.batch` new ratings are in. `outcome` (may be NULL) gets a JSON
 * object: `outcome` is `published`, with `version` and `metrics`; `pending`, with `version`, `ruling` (`trial` or
 * `proposed`), `reason` and `metrics`; or `skipped`, with `reason` and `consumed`.
 *
 * Errors: `APA_ERR_TRAIN` if training failed; `APA_ERR_UNSUPPORTED` if this model can't be trained, or training is
 * off; `APA_ERR_CLOSED`. Serving goes on.
 */
apa_status apa_trainer_step(const apa_engine *engine, apa_string **outcome, apa_error **error);

/**
 * Writes the state of the trainer as a JSON object: `state` (`off`, `unsupported`, `loading`, `idle`, `training`),
 * `reason`, `auto` (whether it trains by itself), `pending_ratings`, `batch`, `steps`, `skipped`, `rolled_back`
 * (versions taken back because ratings fell), `trial` (the candidate that a share of the users gets, or null),
 * `refused` (skipped by the gate), `dropped_steps`, `seconds` (that it worked), `waited_seconds` (that its threads
 * were ready and waited for a core, all together), `reward` (the reward model that keeps learning), `last`
 * (measurements of the newest step; lengths in tokens, KL in nats, times in seconds).
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
 * Brings the newest trained weights into serving now: new requests get the newest version from when this returns, also
 * after a rollback, and training goes on from it. Does nothing if they get it already, as they do whenever a version
 * was published and nobody went back. Running generations end on theirs. Where there is something to do, a training
 * step under way is given up, and its ratings stay in. `version` (may be NULL) gets the version that is served.
 *
 * Errors: `APA_ERR_IO` or `APA_ERR_MODEL` if its files are gone or damaged: what was served goes on; `APA_ERR_CLOSED`.
 */
apa_status apa_policy_sync(const apa_engine *engine, uint64_t *version, apa_error **error);

/**
 * Serves `version` from now on, and trains on from it. Running generations end on theirs; a training step under way is
 * given up, and its ratings stay in. Returns when new requests get it.
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
 * Writes the files of `version` into one file, to be carried to another data folder with the same base model. `path`
 * is replaced if it is there; it is whole or not written.
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
 * Takes in what `apa_policy_snapshot` wrote as a new version, whose parent is the active one, and serves it from now
 * on. `version` (may be NULL) gets its number. The file is checked against its own checksums.
 *
 * Errors: `APA_ERR_IO` if the file can't be read, is damaged, or is none; `APA_ERR_MODEL` if it belongs to another
 * base model (nothing changes then) or can't be served (it is listed then, and the version before goes on);
 * `APA_ERR_CLOSED`.
 */
apa_status apa_policy_restore(const apa_engine *engine,
                              const char *path,
                              size_t path_len,
                              uint64_t *version,
                              apa_error **error);

/**
 * Writes a version as a JSON object: the fields of `apa_policy_list`, its `lineage` (the versions it goes back to, its
 * parent first) and the `verdict` over it: `ruling` (`promoted`, `refused`, `trial`, `proposed`, `rolled_back`) and
 * `record` with `reason`, `examination` and `trial`; null for a version that no gate has judged.
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
 * Opens a feed of what the engine learns. Each piece of news is a JSON object with `event`: `step_done` (`version`,
 * `metrics`), `step_dropped` (`reason`, `consumed`: a batch changed nothing), `version_published` (`version`,
 * `parent`), `version_activated` (`version`), `error` (`code`, `message`), `missed` (`count`: the oldest news were
 * dropped).
 *
 * Errors: `APA_ERR_BUSY` if 64 feeds are open on the engine; `APA_ERR_CLOSED`.
 */
apa_status apa_events_open(const apa_engine *engine, apa_feed **feed, apa_error **error);

/**
 * Opens a feed of answers to be scored: reward jobs. One comes with each answer that ended by itself, once it is on
 * record: a JSON object with `event` `answer`, `generation_id`, `policy_version`, `prompt` (as the model saw it),
 * `text`, `finish_reason`, `completion_tokens`, `user`; or `missed` (`count`), as above. A job is done by
 * `apa_reward_put`; one that is not done is an answer without a reward.
 *
 * Errors: as `apa_events_open`.
 */
apa_status apa_rewards_open(const apa_engine *engine, apa_feed **feed, apa_error **error);

/**
 * Waits at most `timeout_ms` milliseconds for news; 0 only looks, a negative number waits without limit.
 *
 * `APA_OK`: `json` holds a piece of news. `APA_TIMEOUT`: there was none.
 *
 * Errors: `APA_ERR_CLOSED` if the engine was shut down or `feed` freed, also while waiting.
 */
apa_status apa_feed_next(apa_feed *feed, int64_t timeout_ms, apa_string **json, apa_error **error);

/**
 * Has `wake` called, with `user_data`, when there is news to be pulled, and at the end; as `apa_gen_set_wake`.
 *
 * Errors: `APA_ERR_CLOSED` if `feed` was freed.
 */
apa_status apa_feed_set_wake(apa_feed *feed, apa_wake_fn wake, void *user_data, apa_error **error);

/**
 * Frees `feed`; another thread that waits in `apa_feed_next` gets `APA_ERR_CLOSED`. NULL and a second free are
 * harmless.
 */
void apa_feed_free(apa_feed *feed);

/**
 * Gives the answer `generation_id` its reward, from -1 to 1, as a rating by nobody in particular (`apa_feedback`
 * without `user`); it is durable on disk when this returns. The last one counts, beside people's own ratings by the
 * mean.
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
 * Has `reward` called, with `user_data`, for each answer from now on, and what it says recorded as by
 * `apa_reward_put`. One function an engine: it replaces the earlier one; NULL takes it back, and so does shutdown.
 * When this or the shutdown returns, the earlier one is not running and never will be.
 *
 * Errors: `APA_ERR_BUSY` as `apa_rewards_open`; `APA_ERR_CLOSED`.
 */
apa_status apa_reward_set(const apa_engine *engine, apa_reward_fn reward, void *user_data, apa_error **error);

/**
 * Serves the engine over HTTP, as `apad serve` does, on threads of its own. `address` is `127.0.0.1:8372` or the like,
 * with port 0 for a free one; empty for the option `http.listen`. Returns once it listens; `bound` (may be NULL) gets
 * the address. Beyond loopback it wants keys (option `http.keys`).
 *
 * Errors: `APA_ERR_UNSUPPORTED` if the library was built without it (`apa_has("http")`); `APA_ERR_BUSY` if it runs
 * already or the address is taken; `APA_ERR_ARG` for what is no address, or an address beyond loopback without keys;
 * `APA_ERR_IO`; `APA_ERR_CLOSED`.
 */
apa_status apa_http_start(const apa_engine *engine,
                          const char *address,
                          size_t address_len,
                          apa_string **bound,
                          apa_error **error);

/**
 * Stops the HTTP service: nothing new is accepted, running answers get 30 seconds. Returns when it has stopped; does
 * nothing if it does not run. A shutdown of the engine stops it too.
 *
 * Errors: `APA_ERR_IO` if the service had failed; `APA_ERR_CLOSED` if `engine` was freed.
 */
apa_status apa_http_stop(const apa_engine *engine, apa_error **error);

/**
 * Has `log` called, with `user_data`, for each line of the log up to `level` (1 to 5). One hook a process: it replaces
 * the earlier one; NULL takes it back. When this returns the earlier one is not running and never will be. Without a
 * hook nothing is logged.
 *
 * Errors: `APA_ERR_ARG` for another level; `APA_ERR_BUSY` if a Rust program around this library logs already.
 */
apa_status apa_log_set(int32_t level, apa_log_fn log, void *user_data, apa_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* APA_H */
