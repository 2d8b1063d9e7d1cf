// Engine: opening, closing, looking at it, and what its model makes of text. Never generates.

package apa

import (
	"context"
	"encoding/json"
	"runtime"
	"sort"
	"sync"
)

// Options say what is opened. Only Model is required.
type Options struct {
	// Model is the path of the base model, a GGUF file.
	Model string
	// Data is the folder of the record and of the versions; one engine a folder.
	Data string
	// Settings are those of apad.toml, by key with the section first: "serve.slots", "train.lambda". A value is what JSON can
	// say. An unknown key is an error that names the nearest known one.
	Settings map[string]any
}

func (o Options) settings() ([][2]string, error) {
	all := make(map[string]any, len(o.Settings)+2)
	for key, value := range o.Settings {
		all[key] = value
	}
	if o.Model != "" {
		all["model"] = o.Model
	}
	if o.Data != "" {
		all["data"] = o.Data
	}
	keys := make([]string, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	sort.Strings(keys) // Of several errors, always the same one.
	settings := make([][2]string, 0, len(keys))
	for _, key := range keys {
		if value, ok := all[key].(string); ok {
			if err := checkTexts(text{key, value}); err != nil {
				return nil, err
			}
		}
		value, err := encode(key, all[key])
		if err != nil {
			return nil, err
		}
		settings = append(settings, [2]string{key, value})
	}
	return settings, nil
}

// Engine is a serving, learning model. All its methods may be called from any goroutine.
type Engine struct {
	handle engineHandle
	once   sync.Once
}

// Open loads the model, recovers what was running, and starts the engine, which takes as long as the model takes to load. When
// ctx is done first, it returns at once and what has been loaded is freed.
//
// Errors: [ErrArg] for an unknown setting or one out of range; [ErrModel] for a model file that is missing, damaged or of
// another kind; [ErrBusy] if another engine holds the data folder; [ErrIO] for the disk; [ErrUnsupported] for a library of
// another interface.
func Open(ctx context.Context, options Options) (*Engine, error) {
	if err := checkLibrary(); err != nil {
		return nil, err
	}
	settings, err := options.settings()
	if err != nil {
		return nil, err
	}
	handle, err := await(ctx, func() (engineHandle, error) { return openEngine(settings) }, freeEngine)
	if err != nil {
		return nil, err
	}
	e := &Engine{handle: handle}
	// Not on the finalizers' own goroutine: freeing waits for the engine's threads.
	runtime.SetFinalizer(e, func(e *Engine) { go e.Close() })
	return e, nil
}

// Close stops the engine: running generations end with [ErrClosed], and so does every later call. It returns when the engine's
// threads have ended and the data folder is free. Closing again does nothing. The error is always nil.
func (e *Engine) Close() error {
	e.once.Do(func() {
		runtime.SetFinalizer(e, nil)
		freeEngine(e.handle)
	})
	return nil
}

// Status is the state of an engine.
type Status struct {
	Model           string        `json:"model"`            // The base model's name.
	Architecture    string        `json:"architecture"`     // Its architecture.
	PolicyVersion   uint64        `json:"policy_version"`   // The version that new requests get; 0 is the initial model.
	ServingVersions []uint64      `json:"serving_versions"` // Versions in memory, the active one last.
	Running         int           `json:"running"`          // Requests being decoded.
	Queued          int           `json:"queued"`           // Requests waiting.
	Completed       uint64        `json:"completed"`        // Requests completed since the start.
	GeneratedTokens uint64        `json:"generated_tokens"` // Tokens generated since the start.
	PromptTokens    uint64        `json:"prompt_tokens"`    // Prompt tokens evaluated since the start.
	Swaps           uint64        `json:"swaps"`            // Changes of version since the start.
	Trainer         TrainerStatus `json:"trainer"`          // The trainer.
}

// Status looks at the engine. Errors: [ErrClosed].
func (e *Engine) Status() (Status, error) { return decode[Status](e, engineStatus) }

// CountTokens counts the tokens that text is for the model, its beginning-of-sequence token included where it wants one.
// Errors: [ErrArg] for text that is not UTF-8 or too long; [ErrClosed].
func (e *Engine) CountTokens(text string) (int, error) {
	defer runtime.KeepAlive(e)
	count, err := tokenCount(e.handle, text)
	return int(count), err
}

// Render applies the model's chat template and returns the text that the model would continue. Errors: [ErrArg] for messages
// that the template refuses; [ErrUnsupported] if the model has no template; [ErrClosed].
func (e *Engine) Render(messages ...Message) (string, error) {
	defer runtime.KeepAlive(e)
	if err := checkMessages(messages); err != nil {
		return "", err
	}
	if messages == nil {
		messages = []Message{} // The library says what is wrong with it.
	}
	body, err := encode("messages", messages)
	if err != nil {
		return "", err
	}
	return chatRender(e.handle, body)
}

// encode writes what is sent to the library.
func encode(what string, value any) (string, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return "", errorf(ErrArg, "%s can't be written as JSON: %v", what, err)
	}
	return string(body), nil
}

// decode makes a call on the engine and reads the JSON that it gives.
func decode[T any](e *Engine, call func(engineHandle) (string, error)) (T, error) {
	defer runtime.KeepAlive(e)
	var value T
	body, err := call(e.handle)
	if err == nil {
		err = read(body, &value)
	}
	return value, err
}

func read(body string, value any) error {
	if err := json.Unmarshal([]byte(body), value); err != nil {
		return errorf(ErrPanic, "reading an answer of the library: %v", err)
	}
	return nil
}

// outcome is what a call gave.
type outcome[T any] struct {
	value T
	err   error
}

// await runs a long call, and returns early when ctx is done; what the call made by then goes to discard.
func await[T any](ctx context.Context, call func() (T, error), discard func(T)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if ctx.Done() == nil {
		return call()
	}
	answer := make(chan outcome[T], 1)
	go func() {
		value, err := call()
		answer <- outcome[T]{value, err}
	}()
	select {
	case o := <-answer:
		return o.value, o.err
	case <-ctx.Done():
		if discard != nil {
			go func() {
				if o := <-answer; o.err == nil {
					discard(o.value)
				}
			}()
		}
		return none, ctx.Err()
	}
}
