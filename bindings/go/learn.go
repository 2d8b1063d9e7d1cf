// Learning: feedback, the trainer, and versions of the policy. Never trains by itself.

package apa

import (
	"context"
	"encoding/json"
	"math"
	"runtime"
	"time"
)

// Thumbs is the simplest rating.
type Thumbs string

// The thumbs.
const (
	Up   Thumbs = "up"   // A rating of 1.
	Down Thumbs = "down" // A rating of -1.
)

// Feedback is what a person said of an answer: one of Rating, Thumbs, Correction and Signal, or a Comment alone.
type Feedback struct {
	GenerationID string   `json:"generation_id"`        // The answer it is about.
	Rating       *float64 `json:"rating,omitempty"`     // -1 to 1.
	Thumbs       Thumbs   `json:"thumbs,omitempty"`     // Up or Down.
	Correction   string   `json:"correction,omitempty"` // The answer as it should have been.
	Signal       string   `json:"signal,omitempty"`     // What the user did, "copied"; the setting reward.signals has what it adds.
	User         string   `json:"user,omitempty"`       // Who said it.
	Comment      string   `json:"comment,omitempty"`    // A remark; kept, not trained on.
}

// Receipt is proof that feedback is on disk.
type Receipt struct {
	FeedbackID      uint64 `json:"feedback_id"`      // Its number in the record; grows with time.
	GenerationID    string `json:"generation_id"`    // The answer it is about.
	PolicyVersion   uint64 `json:"policy_version"`   // The weights that had answered.
	ReplacesEarlier bool   `json:"replaces_earlier"` // Whether an earlier rating by the same user, which stays on record, no longer counts.
	LeftOut         string `json:"left_out"`         // Why it doesn't teach, though it is kept: a limit, or that it was said before. Else empty.
	Spooled         bool   `json:"spooled"`          // It waits on this machine while the database of ledger.url is away; its number is 0.
}

// Feedback records feedback; it is on disk when this returns. With the setting train.auto, which is the default, the engine
// trains by itself when train.batch new ratings are in.
//
// Errors: [ErrArg] for an unknown generation or a rating out of range; [ErrIO] if it could not be written; [ErrClosed]; the
// context's, if it is done before anything was written.
func (e *Engine) Feedback(ctx context.Context, said Feedback) (Receipt, error) {
	err := checkTexts(text{"generation_id", said.GenerationID}, text{"thumbs", string(said.Thumbs)},
		text{"correction", said.Correction}, text{"signal", said.Signal}, text{"user", said.User}, text{"comment", said.Comment})
	if err != nil {
		return Receipt{}, err
	}
	return record[Receipt](ctx, e, "the feedback", said, feedback)
}

// Preference says that one answer is better than another.
type Preference struct {
	ChosenID   string `json:"chosen_id"`      // The better one.
	RejectedID string `json:"rejected_id"`    // The other one.
	User       string `json:"user,omitempty"` // Who said so.
}

// Prefer records a preference, which is on disk when this returns, and returns its number in the record. Errors: as
// [Engine.Feedback].
func (e *Engine) Prefer(ctx context.Context, said Preference) (uint64, error) {
	err := checkTexts(text{"chosen_id", said.ChosenID}, text{"rejected_id", said.RejectedID}, text{"user", said.User})
	if err != nil {
		return 0, err
	}
	r, err := record[struct {
		ID uint64 `json:"preference_id"`
	}](ctx, e, "the preference", said, preference)
	return r.ID, err
}

// record sends what was said. Not given up half way: the caller would not know whether it is on disk.
func record[T any](ctx context.Context, e *Engine, what string, said any, call func(engineHandle, string) (string, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	body, err := encode(what, said)
	if err != nil {
		return none, err
	}
	return decode[T](e, func(handle engineHandle) (string, error) { return call(handle, body) })
}

// Metrics are what a training batch measured. NaN where there was nothing to measure.
type Metrics struct {
	Samples           int     `json:"samples"`            // Samples that were trained on.
	LeftOut           int     `json:"left_out"`           // Samples left out because they are too long.
	ResponseTokens    int     `json:"response_tokens"`    // Response tokens in the batch.
	MeanReward        float64 `json:"mean_reward"`        // Mean score before normalization.
	MeanLength        float64 `json:"mean_length"`        // Mean response length, in tokens.
	KLPerResponse     float64 `json:"kl_per_response"`    // KL of the parent to the initial model, nats a response (k1).
	KLK1PerToken      float64 `json:"kl_k1_per_token"`    // The same a token, estimator k1.
	KLK3PerToken      float64 `json:"kl_k3_per_token"`    // The same a token, estimator k3.
	PolicyLoss        float64 `json:"policy_loss"`        // Mean over optimizer steps.
	ValueLoss         float64 `json:"value_loss"`         // Mean over optimizer steps.
	GradNorm          float64 `json:"grad_norm"`          // Before clipping, mean over optimizer steps.
	ClipFraction      float64 `json:"clip_fraction"`      // Fraction of tokens that PPO's loss clipped.
	ExplainedVariance float64 `json:"explained_variance"` // Fraction of the returns' variance that the critic explained.
	Steps             int     `json:"steps"`              // Optimizer steps taken.
	DroppedSteps      int     `json:"dropped_steps"`      // Optimizer steps dropped because something was not finite.
	Seconds           float64 `json:"seconds"`            // Wall time of the batch.
}

// UnmarshalJSON reads null, which is how JSON says that a number isn't one, as NaN.
func (m *Metrics) UnmarshalJSON(body []byte) error {
	type plain Metrics
	nan := math.NaN()
	p := plain{MeanReward: nan, MeanLength: nan, KLPerResponse: nan, KLK1PerToken: nan, KLK3PerToken: nan, PolicyLoss: nan,
		ValueLoss: nan, GradNorm: nan, ClipFraction: nan, ExplainedVariance: nan, Seconds: nan}
	err := json.Unmarshal(body, &p)
	*m = Metrics(p)
	return err
}

// Step is what came of a training step.
type Step struct {
	Published bool    // Whether a new version was published, and is served.
	Version   uint64  // The new version; 0 if there is none.
	Ruling    string  // "trial" or "proposed" for a new version that doesn't serve everyone yet.
	Metrics   Metrics // What its batch measured.
	Reason    string  // Why nothing is served that wasn't before.
	Consumed  int     // Ratings that were used up without a version.
}

// UnmarshalJSON reads the outcome that the library gives.
func (s *Step) UnmarshalJSON(body []byte) error {
	var o struct {
		Outcome  string
		Version  uint64
		Ruling   string
		Metrics  Metrics
		Reason   string
		Consumed int
	}
	err := json.Unmarshal(body, &o)
	*s = Step{o.Outcome == "published", o.Version, o.Ruling, o.Metrics, o.Reason, o.Consumed}
	return err
}

// TrainStep trains on the ratings that are in, one batch at most, publishes, and returns when the new version is served. That
// takes seconds to minutes; generations go on meanwhile. When ctx is done it returns at once, and the step goes on.
//
// Errors: [ErrTrain] if training failed; [ErrUnsupported] if this model can't be trained or training is off; [ErrClosed].
func (e *Engine) TrainStep(ctx context.Context) (Step, error) {
	return await(ctx, func() (Step, error) { return decode[Step](e, trainerStep) }, nil)
}

// TrainerStatus is the state of the trainer.
type TrainerStatus struct {
	State          string   `json:"state"`           // off, unsupported, loading, idle or training.
	Reason         string   `json:"reason"`          // Why it is off or unsupported, or what failed last.
	Auto           bool     `json:"auto"`            // Whether it trains by itself.
	PendingRatings uint64   `json:"pending_ratings"` // Ratings not yet used.
	Batch          int      `json:"batch"`           // Ratings that start a step.
	Steps          uint64   `json:"steps"`           // Steps that published a version since the start.
	Skipped        uint64   `json:"skipped"`         // Steps that were skipped since the start.
	DroppedSteps   uint64   `json:"dropped_steps"`   // Optimizer steps dropped since the start.
	Last           *Metrics `json:"last"`            // The newest step; nil before the first.
}

// TrainerStatus looks at the trainer. Errors: [ErrClosed].
func (e *Engine) TrainerStatus() (TrainerStatus, error) {
	return decode[TrainerStatus](e, trainerStatus)
}

// Version is a published state of the policy.
type Version struct {
	Version uint64    // Its number; 0 is the initial model.
	Parent  *uint64   // The version it was trained from; nil for the initial model.
	Active  bool      // Whether new requests get it.
	Created time.Time // When it was published.
	Metrics Metrics   // What its batch measured.
}

// UnmarshalJSON reads a version as the library lists it.
func (v *Version) UnmarshalJSON(body []byte) error {
	var o struct {
		Version uint64
		Parent  *uint64
		Active  bool
		Created int64 // Milliseconds since 1970.
		Metrics Metrics
	}
	err := json.Unmarshal(body, &o)
	*v = Version{o.Version, o.Parent, o.Active, time.UnixMilli(o.Created), o.Metrics}
	return err
}

// Versions lists all versions, oldest first. Errors: [ErrIO] if the record can't be read; [ErrClosed].
func (e *Engine) Versions() ([]Version, error) { return decode[[]Version](e, policyList) }

// Verdict is what was decided about a candidate, and why.
type Verdict struct {
	Parent uint64          `json:"parent"` // The version that it was compared with.
	Ruling string          `json:"ruling"` // promoted, refused, trial, proposed, rolled_back or unlearned.
	Record json.RawMessage `json:"record"` // JSON: reason, examination, trial.
}

// VersionRecord is a version with the verdict over it.
type VersionRecord struct {
	Version
	Lineage []uint64 // The versions it goes back to, its parent first.
	Verdict *Verdict // nil for a version that no gate has judged.
}

// UnmarshalJSON reads a version as the library shows it.
func (v *VersionRecord) UnmarshalJSON(body []byte) error {
	var o struct {
		Lineage []uint64
		Verdict *Verdict
	}
	if err := json.Unmarshal(body, &o); err != nil {
		return err
	}
	v.Lineage, v.Verdict = o.Lineage, o.Verdict
	return json.Unmarshal(body, &v.Version)
}

// Version shows a version with the verdict over it. Errors: [ErrArg] for an unknown version; [ErrIO] if the record can't be
// read; [ErrClosed].
func (e *Engine) Version(version uint64) (VersionRecord, error) {
	return decode[VersionRecord](e, func(handle engineHandle) (string, error) { return policyShow(handle, version) })
}

// ActiveVersion is the version that new requests get; 0 is the initial model. Errors: [ErrClosed].
func (e *Engine) ActiveVersion() (uint64, error) {
	defer runtime.KeepAlive(e)
	return policyVersion(e.handle)
}

// Sync brings the newest version into serving, also after [Engine.Rollback], and returns it; training goes on from it. It does
// nothing if that is served already, as it is unless somebody went back. When ctx is done it returns at once, and the change goes
// on.
//
// Errors: [ErrIO] or [ErrModel] if its files are gone or damaged; [ErrClosed].
func (e *Engine) Sync(ctx context.Context) (uint64, error) {
	return await(ctx, func() (uint64, error) {
		defer runtime.KeepAlive(e)
		return policySync(e.handle)
	}, nil)
}

// Activate serves version from now on, and trains on from it; running generations end on theirs. When ctx is done it returns at
// once, and the change goes on.
//
// Errors: [ErrArg] for an unknown version; [ErrIO] or [ErrModel] if its files are gone or damaged; [ErrClosed].
func (e *Engine) Activate(ctx context.Context, version uint64) error {
	_, err := await(ctx, func() (struct{}, error) {
		defer runtime.KeepAlive(e)
		return struct{}{}, policyActivate(e.handle, version)
	}, nil)
	return err
}

// Rollback activates the version that the active one was trained from, and returns it. Errors: [ErrArg] if the initial model is
// active; else as [Engine.Activate].
func (e *Engine) Rollback(ctx context.Context) (uint64, error) {
	return await(ctx, func() (uint64, error) {
		defer runtime.KeepAlive(e)
		return policyRollback(e.handle)
	}, nil)
}
