// What goes in and out of an engine beside answers: samples, snapshots, numbers, HTTP. Never generates.

package apa

import (
	"context"
	"runtime"
)

// Sample is an answer that was made elsewhere.
type Sample struct {
	Messages         []Message // What was answered: a chat,
	Prompt           string    // or plain text,
	Tokens           []uint32  // or tokens; one of the three.
	Completion       string    // The answer: text,
	CompletionTokens []uint32  // or tokens.
	Reward           *float64  // -1 to 1; nil waits for feedback.
	Temperature      *float64  // At which it was sampled and is trained, 0 to 10; nil is 1.
	User             string    // Whom it was for.
}

// SampleReceipt is proof that a sample is on disk.
type SampleReceipt struct {
	GenerationID  string  `json:"generation_id"`  // The name it got, for feedback.
	FeedbackID    *uint64 `json:"feedback_id"`    // The number of its rating, if it came with a reward.
	PolicyVersion uint64  `json:"policy_version"` // The version served when it came.
}

// AddSample records an answer that was made elsewhere, to be learned from. Errors: [ErrArg] for an empty prompt or completion or a
// reward out of range; [ErrIO]; [ErrClosed]; the context's, if it is done before anything was written.
func (e *Engine) AddSample(ctx context.Context, s Sample) (SampleReceipt, error) {
	err := checkTexts(text{"prompt", s.Prompt}, text{"completion", s.Completion}, text{"user", s.User})
	if err == nil {
		err = checkMessages(s.Messages)
	}
	if err != nil {
		return SampleReceipt{}, err
	}
	var prompt, completion any
	if s.Tokens != nil {
		prompt = s.Tokens
	} else if s.Prompt != "" {
		prompt = s.Prompt
	}
	if s.CompletionTokens != nil {
		completion = s.CompletionTokens
	} else {
		completion = s.Completion
	}
	return record[SampleReceipt](ctx, e, "the sample", struct {
		Messages    []Message `json:"messages,omitempty"`
		Prompt      any       `json:"prompt,omitempty"`
		Completion  any       `json:"completion"`
		Reward      *float64  `json:"reward,omitempty"`
		Temperature *float64  `json:"temperature,omitempty"`
		User        string    `json:"user,omitempty"`
	}{s.Messages, prompt, completion, s.Reward, s.Temperature, s.User}, sampleAdd)
}

// Forgotten says how much was deleted.
type Forgotten struct {
	Generations uint64 `json:"generations"` // Answers made for the user, with their prompts.
	Feedback    uint64 `json:"feedback"`    // The user's own, and anyone's on those answers.
	Preferences uint64 `json:"preferences"` // The same.
	Samples     uint64 `json:"samples"`     // Records of training samples made of those answers.
}

// Forget deletes a user's words: the answers made for them, what anyone said of those, and all they said. They are overwritten on
// disk when this returns; the versions that learned from them remain. Errors: [ErrArg] for an empty name; [ErrIO]; [ErrClosed].
func (e *Engine) Forget(ctx context.Context, user string) (Forgotten, error) {
	if err := ctx.Err(); err != nil {
		return Forgotten{}, err
	}
	if err := checkTexts(text{"user", user}); err != nil {
		return Forgotten{}, err
	}
	return decode[Forgotten](e, func(handle engineHandle) (string, error) { return forget(handle, user) })
}

// UnlearnPlan says what it takes to replace the versions that learned from a user.
type UnlearnPlan struct {
	First    uint64  `json:"first"`    // The first version that learned from the user; it and all later ones are removed.
	Back     uint64  `json:"back"`     // The last ancestor of the active version that did not: parent of the new one.
	Start    uint64  `json:"start"`    // Where the replay begins.
	Versions uint64  `json:"versions"` // How many are removed.
	Batches  uint64  `json:"batches"`  // Trained on again.
	Answers  uint64  `json:"answers"`  // In those batches.
	Wordless uint64  `json:"wordless"` // Of those, no longer on record, and lost.
	Seconds  float64 `json:"seconds"`  // What those batches took at first.
}

// UnlearnReceipt says what was deleted, and what is replaced from now on.
type UnlearnReceipt struct {
	Forgotten
	Unlearning *UnlearnPlan `json:"unlearning"` // Nil if no version learned from the user.
}

// UnlearnPlan tells what [Engine.Unlearn] takes, and changes nothing; nil if no version learned from the user. Errors: [ErrArg] for
// an empty name; [ErrUnsupported] if a version that learned from the user was restored or adopted; [ErrIO]; [ErrClosed].
func (e *Engine) UnlearnPlan(ctx context.Context, user string) (*UnlearnPlan, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkTexts(text{"user", user}); err != nil {
		return nil, err
	}
	planned, err := decode[UnlearnReceipt](e, func(handle engineHandle) (string, error) { return unlearnPlan(handle, user) })
	return planned.Unlearning, err
}

// Unlearn deletes a user's words as [Engine.Forget] does, and has the versions that learned from them replaced by one that trains on
// the recorded batches without them and is judged like any candidate. It returns once the words are deleted; events tell of the rest,
// and an engine that is opened again resumes it. Errors: as [Engine.UnlearnPlan]; [ErrBusy] if a user is being unlearned; [ErrTrain]
// if there is no trainer.
func (e *Engine) Unlearn(ctx context.Context, user string) (UnlearnReceipt, error) {
	if err := checkTexts(text{"user", user}); err != nil {
		return UnlearnReceipt{}, err
	}
	return await(ctx, func() (UnlearnReceipt, error) {
		return decode[UnlearnReceipt](e, func(handle engineHandle) (string, error) { return unlearn(handle, user) })
	}, nil)
}

// Snapshot writes a version into one file, to be carried to another data folder with the same base model. Errors: [ErrArg] for an
// unknown version, and for 0, which has no files; [ErrIO]; [ErrClosed].
func (e *Engine) Snapshot(ctx context.Context, version uint64, path string) error {
	_, err := await(ctx, func() (struct{}, error) {
		defer runtime.KeepAlive(e)
		return struct{}{}, policySnapshot(e.handle, version, path)
	}, nil)
	return err
}

// Restore serves what Snapshot wrote, as a new version, and returns its number. Errors: [ErrIO] for a file that is damaged or none;
// [ErrModel] if it belongs to another base model; [ErrClosed].
func (e *Engine) Restore(ctx context.Context, path string) (uint64, error) {
	return await(ctx, func() (uint64, error) {
		defer runtime.KeepAlive(e)
		return policyRestore(e.handle, path)
	}, nil)
}

// StartTrainer lets the engine train by itself whenever a batch of ratings is in. Errors: [ErrUnsupported] if training is off;
// [ErrClosed].
func (e *Engine) StartTrainer() error { return e.do(trainerStart) }

// StopTrainer has the engine train by [Engine.TrainStep] only; a step under way goes on to its end. Errors: [ErrClosed].
func (e *Engine) StopTrainer() error { return e.do(trainerStop) }

// Metrics are the engine's numbers in the text format that Prometheus reads. Errors: [ErrClosed].
func (e *Engine) Metrics() (string, error) {
	defer runtime.KeepAlive(e)
	return engineMetrics(e.handle)
}

// StartHTTP serves the engine over HTTP on threads of its own, and returns the address. "" is the setting http.listen; port 0 takes
// a free one. Errors: [ErrBusy] if it runs already or the address is taken; [ErrArg] for what is no address, or one beyond loopback
// without keys; [ErrUnsupported] if the library was built without it; [ErrClosed].
func (e *Engine) StartHTTP(address string) (string, error) {
	defer runtime.KeepAlive(e)
	if err := checkTexts(text{"address", address}); err != nil {
		return "", err
	}
	return httpStart(e.handle, address)
}

// StopHTTP stops the service. Errors: [ErrIO] if it had failed; [ErrClosed].
func (e *Engine) StopHTTP() error { return e.do(httpStop) }

func (e *Engine) do(call func(engineHandle) (string, error)) error {
	defer runtime.KeepAlive(e)
	_, err := call(e.handle)
	return err
}
