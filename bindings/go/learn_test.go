// Feedback, steps and versions. Tests no stream.

package apa

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
)

func answer(t *testing.T, engine *Engine, seed uint64) *Result {
	t.Helper()
	result, err := engine.Complete(background, Request{Messages: []Message{User("hi")}, MaxTokens: 8, Seed: &seed})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestFeedbackIsAcknowledgedAndWrongFeedbackExplained(t *testing.T) {
	engine := open(t, nil)
	one, two := answer(t, engine, 1), answer(t, engine, 2)
	receipt, err := engine.Feedback(background, Feedback{GenerationID: one.ID, Thumbs: Up, User: "ann"})
	if err != nil || receipt.GenerationID != one.ID || receipt.ReplacesEarlier {
		t.Fatalf("%+v, %v", receipt, err)
	}
	receipt, err = engine.Feedback(background, Feedback{GenerationID: one.ID, Rating: Ptr(0.0), User: "ann"})
	if err != nil || !receipt.ReplacesEarlier {
		t.Fatalf("%+v, %v", receipt, err)
	}
	receipt, err = engine.Feedback(background, Feedback{GenerationID: one.ID, Signal: "copied", User: "bob"})
	if err != nil || receipt.ReplacesEarlier {
		t.Fatalf("%+v, %v", receipt, err)
	}
	if id, err := engine.Prefer(background, Preference{ChosenID: one.ID, RejectedID: two.ID}); err != nil || id == 0 {
		t.Fatalf("%d, %v", id, err)
	}
	for _, c := range []struct {
		feedback Feedback
		says     string
	}{
		{Feedback{GenerationID: "nobody", Thumbs: Up}, "nobody"},
		{Feedback{GenerationID: one.ID}, "says nothing"},
		{Feedback{GenerationID: one.ID, Thumbs: Up, Correction: "b"}, "several"},
		{Feedback{GenerationID: one.ID, Rating: Ptr(1.5)}, "rating is 1.5"},
		{Feedback{GenerationID: one.ID, Rating: Ptr(math.NaN())}, "JSON"},
		{Feedback{GenerationID: one.ID, Thumbs: "sideways"}, "sideways"},
		{Feedback{GenerationID: one.ID, Correction: "\xff"}, "correction is not valid UTF-8"},
	} {
		if _, err := engine.Feedback(background, c.feedback); !errors.Is(err, ErrArg) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: error is %v, expected one of ErrArg that says %q", c.feedback, err, c.says)
		}
	}
	if _, err := engine.Prefer(background, Preference{ChosenID: one.ID, RejectedID: "x"}); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
}

func TestAStepPublishesAVersionAndRollbackGoesBack(t *testing.T) {
	engine := open(t, nil)
	for seed := uint64(0); seed < 8; seed++ {
		rating := Ptr(float64(seed)/4 - 1)
		if _, err := engine.Feedback(background, Feedback{GenerationID: answer(t, engine, seed).ID, Rating: rating}); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := engine.TrainerStatus(); err != nil || status.PendingRatings != 8 || status.Last != nil {
		t.Fatalf("%+v, %v", status, err)
	}
	step, err := engine.TrainStep(background)
	if err != nil || !step.Published || step.Version != 1 || step.Metrics.Samples != 8 || step.Metrics.Seconds <= 0 {
		t.Fatalf("%+v, %v", step, err)
	}
	if result := answer(t, engine, 1); result.PolicyVersion != 1 {
		t.Fatalf("version %d answered", result.PolicyVersion)
	}
	versions, err := engine.Versions()
	if err != nil || len(versions) != 2 || versions[0].Parent != nil || versions[1].Parent == nil || *versions[1].Parent != 0 ||
		!versions[1].Active || versions[1].Created.Year() < 2024 || versions[1].Metrics.Samples != 8 {
		t.Fatalf("%+v, %v", versions, err)
	}
	if back, err := engine.Rollback(background); err != nil || back != 0 {
		t.Fatalf("%d, %v", back, err)
	}
	if _, err := engine.Rollback(background); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if err := engine.Activate(background, 41); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if err := engine.Activate(background, 1); err != nil {
		t.Fatal(err)
	}
	if active, err := engine.ActiveVersion(); err != nil || active != 1 {
		t.Fatalf("%d, %v", active, err)
	}
	if step, err := engine.TrainStep(background); err != nil || step.Published || step.Reason == "" {
		t.Fatalf("a step without ratings: %+v, %v", step, err)
	}
}

func TestTrainingThatIsOffSaysSo(t *testing.T) {
	engine := open(t, map[string]any{"train.enabled": false})
	if _, err := engine.TrainStep(background); !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	if status, err := engine.TrainerStatus(); err != nil || status.State != "off" {
		t.Fatalf("%+v, %v", status, err)
	}
}

func TestWhatWasNotMeasuredIsNaN(t *testing.T) {
	var m Metrics
	if err := json.Unmarshal([]byte(`{"samples": 3, "mean_reward": null, "value_loss": 0.5}`), &m); err != nil {
		t.Fatal(err)
	}
	if m.Samples != 3 || !math.IsNaN(m.MeanReward) || m.ValueLoss != 0.5 {
		t.Fatalf("%+v", m)
	}
}
