// The calls of apa.h as Go functions: text in, text and error out. Nothing else but wake.go touches C, and C never writes to memory
// of Go or keeps a pointer to it.

package apa

/*
#cgo LDFLAGS: -lapa
#include "apa.h"

// What a call gave, by value.
typedef struct {
	apa_status status;
	apa_error *error;
	apa_string *string;
	const char *text;
	size_t text_len;
	uint64_t number;
} go_out;

#define OUT(call)                                      \
	go_out out = {APA_OK, NULL, NULL, "", 0, 0};   \
	out.status = call;                             \
	if (out.string) {                              \
		out.text = apa_string_data(out.string);    \
		out.text_len = apa_string_len(out.string); \
	}                                              \
	return out

// An empty string of Go has no address.
#define TEXT(s) (_GoStringLen(s) ? _GoStringPtr(s) : ""), _GoStringLen(s)

typedef struct { apa_options *handle; go_out out; } go_options;
typedef struct { apa_engine *handle; go_out out; } go_engine;
typedef struct { apa_gen *handle; go_out out; } go_gen;
typedef struct { apa_feed *handle; go_out out; } go_feed;

static go_options go_options_new(void) {
	go_options made = {0};
	made.out.status = apa_options_new(&made.handle, &made.out.error);
	return made;
}
static go_out go_options_set_json(apa_options *o, _GoString_ key, _GoString_ json) {
	OUT(apa_options_set_json(o, TEXT(key), TEXT(json), &out.error));
}
static go_engine go_engine_open(const apa_options *o) {
	go_engine made = {0};
	made.out.status = apa_engine_open(o, &made.handle, &made.out.error);
	return made;
}
static go_out go_engine_status(const apa_engine *e) { OUT(apa_engine_status(e, &out.string, &out.error)); }
static go_out go_token_count(const apa_engine *e, _GoString_ text) {
	size_t tokens = 0;
	go_out out = {0};
	out.status = apa_token_count(e, TEXT(text), &tokens, &out.error);
	out.number = tokens;
	return out;
}
static go_out go_chat_render(const apa_engine *e, _GoString_ messages) {
	OUT(apa_chat_render(e, TEXT(messages), &out.string, NULL, &out.error));
}

static go_gen go_gen_start(const apa_engine *e, _GoString_ request) {
	go_gen made = {0};
	made.out.status = apa_gen_start(e, TEXT(request), &made.handle, &made.out.error);
	return made;
}
static go_out go_gen_id(const apa_gen *g) { OUT(apa_gen_id(g, &out.string, &out.error)); }
static go_out go_gen_poll(apa_gen *g) { OUT(apa_gen_next(g, 0, &out.string, &out.error)); }
static go_out go_gen_result(const apa_gen *g) { OUT(apa_gen_result(g, &out.string, &out.error)); }

void apaGoWake(uintptr_t hook); // in wake.go
static void go_wake(void *hook) { apaGoWake((uintptr_t)hook); }
static go_out go_gen_set_wake(apa_gen *g, uintptr_t hook) {
	OUT(apa_gen_set_wake(g, go_wake, (void *)hook, &out.error));
}

static go_out go_feedback(const apa_engine *e, _GoString_ json) {
	OUT(apa_feedback(e, TEXT(json), &out.string, &out.error));
}
static go_out go_preference(const apa_engine *e, _GoString_ json) {
	OUT(apa_preference(e, TEXT(json), &out.string, &out.error));
}
static go_out go_trainer_step(const apa_engine *e) { OUT(apa_trainer_step(e, &out.string, &out.error)); }
static go_out go_trainer_status(const apa_engine *e) { OUT(apa_trainer_status(e, &out.string, &out.error)); }
static go_out go_policy_version(const apa_engine *e) { OUT(apa_policy_version(e, &out.number, &out.error)); }
static go_out go_policy_sync(const apa_engine *e) { OUT(apa_policy_sync(e, &out.number, &out.error)); }
static go_out go_policy_activate(const apa_engine *e, uint64_t version) {
	OUT(apa_policy_activate(e, version, &out.error));
}
static go_out go_policy_rollback(const apa_engine *e) { OUT(apa_policy_rollback(e, &out.number, &out.error)); }
static go_out go_policy_list(const apa_engine *e) { OUT(apa_policy_list(e, &out.string, &out.error)); }
static go_out go_policy_show(const apa_engine *e, uint64_t version) {
	OUT(apa_policy_show(e, version, &out.string, &out.error));
}
static go_out go_policy_snapshot(const apa_engine *e, uint64_t version, _GoString_ path) {
	OUT(apa_policy_snapshot(e, version, TEXT(path), &out.error));
}
static go_out go_policy_restore(const apa_engine *e, _GoString_ path) {
	OUT(apa_policy_restore(e, TEXT(path), &out.number, &out.error));
}
static go_out go_engine_metrics(const apa_engine *e) { OUT(apa_engine_metrics(e, &out.string, &out.error)); }
static go_out go_sample_add(const apa_engine *e, _GoString_ json) {
	OUT(apa_sample_add(e, TEXT(json), &out.string, &out.error));
}
static go_out go_reward_put(const apa_engine *e, _GoString_ id, double reward) {
	OUT(apa_reward_put(e, TEXT(id), reward, &out.error));
}
static go_out go_forget(const apa_engine *e, _GoString_ user) {
	OUT(apa_forget(e, TEXT(user), &out.string, &out.error));
}
static go_out go_unlearn_plan(const apa_engine *e, _GoString_ user) {
	OUT(apa_unlearn_plan(e, TEXT(user), &out.string, &out.error));
}
static go_out go_unlearn(const apa_engine *e, _GoString_ user) {
	OUT(apa_unlearn(e, TEXT(user), &out.string, &out.error));
}
static go_out go_trainer_start(const apa_engine *e) { OUT(apa_trainer_start(e, &out.error)); }
static go_out go_trainer_stop(const apa_engine *e) { OUT(apa_trainer_stop(e, &out.error)); }
static go_out go_http_start(const apa_engine *e, _GoString_ address) {
	OUT(apa_http_start(e, TEXT(address), &out.string, &out.error));
}
static go_out go_http_stop(const apa_engine *e) { OUT(apa_http_stop(e, &out.error)); }
static go_feed go_feed_open(const apa_engine *e, int answers) {
	go_feed made = {0};
	made.out.status = answers ? apa_rewards_open(e, &made.handle, &made.out.error)
	                          : apa_events_open(e, &made.handle, &made.out.error);
	return made;
}
static go_out go_feed_set_wake(apa_feed *f, uintptr_t hook) {
	OUT(apa_feed_set_wake(f, go_wake, (void *)hook, &out.error));
}

void apaGoLog(int32_t level, char *json, size_t length); // in wake.go
static void go_log(void *unused, int32_t level, const char *json, size_t length) {
	(void)unused;
	apaGoLog(level, (char *)json, length);
}
static go_out go_log_set(int32_t level, int wanted) {
	OUT(apa_log_set(level, wanted ? go_log : NULL, NULL, &out.error));
}
static go_out go_feed_poll(apa_feed *f) { OUT(apa_feed_next(f, 0, &out.string, &out.error)); }
*/
import "C"

import (
	"fmt"
	"runtime/cgo"
	"unsafe"
)

// Handles of the library: keys, not addresses. One that was freed gives ErrClosed, so none of them needs a lock here.
type (
	engineHandle     = *C.apa_engine
	generationHandle = *C.apa_gen
	feedHandle       = *C.apa_feed
)

// Outcomes of a poll that are no failure.
const (
	statusText    = C.APA_OK
	statusNothing = C.APA_TIMEOUT
)

// done takes what a call gave, and frees it.
func done(out C.go_out) (string, error) {
	if out.error != nil {
		defer C.apa_error_free(out.error)
		return "", &Error{Code: Code(out.status), Message: C.GoString(C.apa_error_message(out.error))}
	}
	if out.status < 0 {
		// Memory for the error itself may be missing.
		return "", &Error{Code: Code(out.status), Message: Code(out.status).text()}
	}
	if out.string == nil {
		return "", nil
	}
	// Not C.GoStringN: its length is an int of C.
	text := string(unsafe.Slice((*byte)(unsafe.Pointer(out.text)), int(out.text_len)))
	C.apa_string_free(out.string)
	return text, nil
}

// checkLibrary refuses a library of another interface than the header's.
func checkLibrary() error {
	library, header := uint32(C.apa_abi_version()), uint32(C.APA_ABI_VERSION)
	if library>>16 != header>>16 || library&0xffff < header&0xffff {
		return &Error{Code: ErrUnsupported, Message: fmt.Sprintf("libapa has interface %d.%d, this package was built for %d.%d",
			library>>16, library&0xffff, header>>16, header&0xffff)}
	}
	return nil
}

// setLog has logLine called for each line of the log up to level, or no longer.
func setLog(level LogLevel, wanted bool) error {
	var hook C.int
	if wanted {
		hook = 1
	}
	_, err := done(C.go_log_set(C.int32_t(level), hook))
	return err
}

// LibraryVersion is the version of the linked libapa, as "0.1.0".
func LibraryVersion() string { return C.GoString(C.apa_version()) }

// openEngine opens with settings of key and JSON, in order.
func openEngine(settings [][2]string) (engineHandle, error) {
	options := C.go_options_new()
	if _, err := done(options.out); err != nil {
		return nil, err
	}
	defer C.apa_options_free(options.handle)
	for _, setting := range settings {
		if _, err := done(C.go_options_set_json(options.handle, setting[0], setting[1])); err != nil {
			return nil, err
		}
	}
	engine := C.go_engine_open(options.handle)
	_, err := done(engine.out)
	return engine.handle, err
}

func freeEngine(e engineHandle)                              { C.apa_engine_free(e) }
func engineStatus(e engineHandle) (string, error)            { return done(C.go_engine_status(e)) }
func chatRender(e engineHandle, json string) (string, error) { return done(C.go_chat_render(e, json)) }
func tokenCount(e engineHandle, text string) (uint64, error) {
	return number(C.go_token_count(e, text))
}

// startGeneration starts a generation that fills hook's channel whenever there is something to be polled.
func startGeneration(e engineHandle, json string, hook cgo.Handle) (generationHandle, string, error) {
	made := C.go_gen_start(e, json)
	if _, err := done(made.out); err != nil {
		return nil, "", err
	}
	id, err := done(C.go_gen_id(made.handle))
	if err == nil {
		_, err = done(C.go_gen_set_wake(made.handle, C.uintptr_t(hook)))
	}
	if err != nil {
		C.apa_gen_free(made.handle)
		return nil, "", err
	}
	return made.handle, id, nil
}

func generationResult(g generationHandle) (string, error) { return done(C.go_gen_result(g)) }
func cancelGeneration(g generationHandle)                 { C.apa_gen_cancel(g, nil) }
func freeGeneration(g generationHandle)                   { C.apa_gen_free(g) }

// pollGeneration looks for text without waiting.
func pollGeneration(g generationHandle) (string, C.apa_status, error) {
	out := C.go_gen_poll(g)
	text, err := done(out)
	return text, out.status, err
}

func number(out C.go_out) (uint64, error) {
	_, err := done(out)
	return uint64(out.number), err
}

func feedback(e engineHandle, json string) (string, error)   { return done(C.go_feedback(e, json)) }
func preference(e engineHandle, json string) (string, error) { return done(C.go_preference(e, json)) }
func trainerStep(e engineHandle) (string, error)             { return done(C.go_trainer_step(e)) }
func trainerStatus(e engineHandle) (string, error)           { return done(C.go_trainer_status(e)) }
func policyList(e engineHandle) (string, error)              { return done(C.go_policy_list(e)) }
func policyShow(e engineHandle, version uint64) (string, error) {
	return done(C.go_policy_show(e, C.uint64_t(version)))
}
func policyVersion(e engineHandle) (uint64, error)  { return number(C.go_policy_version(e)) }
func policySync(e engineHandle) (uint64, error)     { return number(C.go_policy_sync(e)) }
func policyRollback(e engineHandle) (uint64, error) { return number(C.go_policy_rollback(e)) }
func policyActivate(e engineHandle, version uint64) error {
	_, err := done(C.go_policy_activate(e, C.uint64_t(version)))
	return err
}

func policySnapshot(e engineHandle, version uint64, path string) error {
	_, err := done(C.go_policy_snapshot(e, C.uint64_t(version), path))
	return err
}
func policyRestore(e engineHandle, path string) (uint64, error) {
	return number(C.go_policy_restore(e, path))
}
func engineMetrics(e engineHandle) (string, error)          { return done(C.go_engine_metrics(e)) }
func sampleAdd(e engineHandle, json string) (string, error) { return done(C.go_sample_add(e, json)) }
func rewardPut(e engineHandle, id string, reward float64) error {
	_, err := done(C.go_reward_put(e, id, C.double(reward)))
	return err
}
func forget(e engineHandle, user string) (string, error) { return done(C.go_forget(e, user)) }

func unlearnPlan(e engineHandle, user string) (string, error) {
	return done(C.go_unlearn_plan(e, user))
}

func unlearn(e engineHandle, user string) (string, error) { return done(C.go_unlearn(e, user)) }
func trainerStart(e engineHandle) (string, error)         { return done(C.go_trainer_start(e)) }
func trainerStop(e engineHandle) (string, error)          { return done(C.go_trainer_stop(e)) }
func httpStart(e engineHandle, address string) (string, error) {
	return done(C.go_http_start(e, address))
}
func httpStop(e engineHandle) (string, error) { return done(C.go_http_stop(e)) }

// openFeed opens a feed that fills hook's channel whenever there is news.
func openFeed(e engineHandle, answers bool, hook cgo.Handle) (feedHandle, error) {
	var topic C.int
	if answers {
		topic = 1
	}
	made := C.go_feed_open(e, topic)
	if _, err := done(made.out); err != nil {
		return nil, err
	}
	if _, err := done(C.go_feed_set_wake(made.handle, C.uintptr_t(hook))); err != nil {
		C.apa_feed_free(made.handle)
		return nil, err
	}
	return made.handle, nil
}
func freeFeed(f feedHandle) { C.apa_feed_free(f) }
func pollFeed(f feedHandle) (string, C.apa_status, error) {
	out := C.go_feed_poll(f)
	text, err := done(out)
	return text, out.status, err
}
