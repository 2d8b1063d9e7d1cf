// What the tests share: a tiny model from the environment, and engines on it.

package apa

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// background is the context of what a test doesn't mean to end.
var background = context.Background()

// patience is longer than anything here takes on a busy machine.
const patience = time.Minute

func tinyModel(t testing.TB) string {
	t.Helper()
	model := os.Getenv("APA_TINY_MODEL")
	if model == "" {
		t.Fatal("APA_TINY_MODEL names no model: a small GGUF with a chat template (`cargo test --release --test it go` writes one and runs these tests)")
	}
	return model
}

// open opens an engine on a data folder of its own, with settings over those that keep it small.
func open(t testing.TB, settings map[string]any) *Engine {
	t.Helper()
	all := map[string]any{"serve.context": 8192, "serve.threads": 1, "serve.speculate": false, "train.auto": false, "train.threads": 1}
	for key, value := range settings {
		all[key] = value
	}
	engine, err := Open(background, Options{Model: tinyModel(t), Data: t.TempDir(), Settings: all})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

func short() Request {
	return Request{Messages: []Message{User("hi")}, MaxTokens: 8, Seed: Ptr(uint64(3))}
}

// long is a request that runs for seconds on a tiny model: random weights would end an answer by chance.
func long() Request {
	return Request{Prompt: "the", MaxTokens: 7000, IgnoreEOS: true, Seed: Ptr(uint64(2))}
}

// crowd fills the only slot, so that the last of the streams waits for long.
func crowd(t testing.TB) (*Engine, *Stream) {
	t.Helper()
	engine := open(t, map[string]any{"serve.slots": 1, "serve.queue": 64})
	request := long()
	for i := 0; i < 40; i++ {
		before := start(t, engine, request)
		t.Cleanup(func() { before.Close() })
	}
	return engine, start(t, engine, request)
}

func start(t testing.TB, engine *Engine, request Request) *Stream {
	t.Helper()
	stream, err := engine.Generate(background, request)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// readAll reads to the end of Next.
func readAll(ctx context.Context, s *Stream) (string, error) {
	whole := ""
	for s.Next(ctx) {
		if s.Text() == "" {
			return whole, errors.New("Next was true without text")
		}
		whole += s.Text()
	}
	return whole, s.Err()
}

// within fails the test if do takes longer than limit; on its own goroutine, which must not use t.
func within(t testing.TB, limit time.Duration, do func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(limit):
		t.Fatalf("not done in %v", limit)
	}
}

func wantErr(err, class error) error {
	if !errors.Is(err, class) {
		return fmt.Errorf("error is %v, expected %v", err, class)
	}
	return nil
}
