package apa

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSamplesRewardsAndNews(t *testing.T) {
	engine := open(t, nil)
	events, err := engine.Events()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := engine.Answers()
	if err != nil {
		t.Fatal(err)
	}
	result, err := engine.Complete(background, Request{Prompt: "the", MaxTokens: 6, Seed: Ptr(uint64(3))})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := answers.Next(background)
	if err != nil || answer.GenerationID != result.ID || answer.Text != result.Text {
		t.Fatalf("%+v, %v", answer, err)
	}
	if err := engine.Reward(background, answer.GenerationID, 0.5); err != nil {
		t.Fatal(err)
	}
	if err := engine.Reward(background, "nobody", 0.5); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	receipt, err := engine.AddSample(background, Sample{Messages: []Message{User("hi")}, Completion: "abc", Reward: Ptr(-1.0)})
	if err != nil || receipt.FeedbackID == nil {
		t.Fatalf("%+v, %v", receipt, err)
	}
	if _, err := engine.AddSample(background, Sample{Prompt: "a"}); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if plan, err := engine.UnlearnPlan(background, "nobody"); err != nil || plan != nil {
		t.Errorf("the plan for nobody: %v, %v", plan, err)
	}
	if gone, err := engine.Unlearn(background, "nobody"); err != nil || gone != (UnlearnReceipt{}) {
		t.Errorf("unlearning nobody: %v, %v", gone, err)
	}
	if gone, err := engine.Forget(background, "nobody"); err != nil || gone != (Forgotten{}) {
		t.Fatal(gone, err)
	}
	step, err := engine.TrainStep(background)
	if err != nil || !step.Published {
		t.Fatalf("%+v, %v", step, err)
	}
	for _, kind := range []string{"version_published", "step_done"} {
		event, err := events.Next(background)
		if err != nil || event.Kind != kind || event.Version != step.Version {
			t.Fatalf("%+v, %v", event, err)
		}
	}
	soon, cancel := context.WithTimeout(background, 5*time.Millisecond)
	defer cancel()
	if _, err := events.Next(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}

	file := filepath.Join(t.TempDir(), "version.apa")
	if err := engine.Snapshot(background, step.Version, file); err != nil {
		t.Fatal(err)
	}
	if version, err := engine.Restore(background, file); err != nil || version != step.Version+1 {
		t.Fatal(version, err)
	}
	answers.Close()
	if _, err := answers.Next(background); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		for {
			if _, err := events.Next(background); err != nil {
				waiting <- err
				return
			}
		}
	}()
	engine.Close()
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestTheTrainerTheMetricsAndTheService(t *testing.T) {
	engine := open(t, nil)
	if err := engine.StartTrainer(); err != nil {
		t.Fatal(err)
	}
	if status, err := engine.TrainerStatus(); err != nil || !status.Auto {
		t.Fatalf("%+v, %v", status, err)
	}
	if err := engine.StopTrainer(); err != nil {
		t.Fatal(err)
	}
	if metrics, err := engine.Metrics(); err != nil || !strings.Contains(metrics, "apa_policy_version 0") {
		t.Fatal(metrics, err)
	}
	if address, err := engine.StartHTTP("127.0.0.1:0"); err != nil || !strings.HasPrefix(address, "127.0.0.1:") {
		t.Fatal(address, err)
	}
	if _, err := engine.StartHTTP("127.0.0.1:0"); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	if err := engine.StopHTTP(); err != nil {
		t.Fatal(err)
	}
}
