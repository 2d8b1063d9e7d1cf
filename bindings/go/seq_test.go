//go:build go1.23

// Streams as sequences. Tests nothing that older Go has.

package apa

import (
	"context"
	"errors"
	"testing"
)

func TestAStreamIsASequence(t *testing.T) {
	engine := open(t, nil)
	stream, whole := start(t, engine, short()), ""
	for text, err := range stream.All(background) {
		if err != nil {
			t.Fatal(err)
		}
		whole += text
	}
	if result, err := stream.Result(); err != nil || result.Text != whole {
		t.Fatalf("%+v, %v", result, err)
	}

	stream = start(t, engine, long())
	for range stream.All(background) {
		break
	}
	if _, err := stream.Result(); !errors.Is(err, ErrClosed) {
		t.Fatalf("a loop that was left did not close the stream: %v", err)
	}

	ctx, cancel := context.WithCancel(background)
	cancel()
	stream = start(t, engine, short())
	defer stream.Close()
	var last error
	for _, err := range stream.All(ctx) {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Fatal(last)
	}
}
