// Requests and streams: whole, ended early from every side, and many at once. Tests no learning.

package apa

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAnAnswerStreamsAndIsToldWhole(t *testing.T) {
	engine := open(t, nil)
	stream := start(t, engine, short())
	if _, err := stream.Result(); !errors.Is(err, ErrBusy) {
		t.Fatalf("a result before the end: %v", err)
	}
	whole, err := readAll(background, stream)
	if err != nil {
		t.Fatal(err)
	}
	result, err := stream.Result()
	if err != nil || result.Text != whole || result.ID != stream.ID() || result.Seed != 3 || result.Usage.CompletionTokens == 0 {
		t.Fatalf("%+v, %v, streamed %q", result, err, whole)
	}
	// The end stays the end, also after Close.
	stream.Close()
	if stream.Next(background) || stream.Err() != nil || stream.Text() != "" {
		t.Fatal("text after the end")
	}
	again, err := engine.Complete(background, short())
	if err != nil || again.Text != whole {
		t.Fatalf("the same seed gave %+v, %v, expected %q", again, err, whole)
	}
	chat, err := engine.Chat(background, User("hi"))
	if err != nil || chat.ID == again.ID {
		t.Fatalf("%+v, %v", chat, err)
	}
}

func TestAWrongRequestNamesWhatIsWrong(t *testing.T) {
	engine := open(t, map[string]any{"serve.context": 256})
	for _, c := range []struct {
		request Request
		says    string
	}{
		{Request{}, "messages"},
		{Request{Prompt: "a", Messages: []Message{User("b")}}, "both"},
		{Request{Prompt: "a", Tokens: []uint32{1}}, "both"},
		{Request{Prompt: "a", MaxTokens: -1}, "max_tokens"},
		{Request{Prompt: "a", Temperature: Ptr(11.0)}, "temperature"},
		{Request{Prompt: "a", TopP: 2}, "top_p"},
		{Request{Prompt: "a\xff"}, "prompt is not valid UTF-8 from byte 1 on"},
		{Request{Messages: []Message{User("ok"), User("\xc3")}}, "messages[1].content"},
		{Request{Messages: []Message{}}, "neither messages nor prompt"},
		{Request{Prompt: strings.Repeat("the ", 1<<18)}, "256"},
		{Request{Tokens: []uint32{1 << 30}}, "token"},
		{Request{Tokens: []uint32{}}, "an empty array"},
	} {
		stream, err := engine.Generate(background, c.request)
		if stream != nil || !errors.Is(err, ErrArg) || !strings.Contains(err.Error(), c.says) {
			said := fmt.Sprintf("%+v", c.request)
			t.Errorf("%.80s: error is %v, expected one of ErrArg that says %q", said, err, c.says)
		}
	}
}

func TestAFullQueueIsBusy(t *testing.T) {
	engine := open(t, map[string]any{"serve.slots": 1, "serve.queue": 1})
	request := long()
	for i := 0; i < 50; i++ {
		stream, err := engine.Generate(background, request)
		if errors.Is(err, ErrBusy) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
	}
	t.Fatal("fifty requests fit into a queue of one")
}

func TestADoneContextStartsNothing(t *testing.T) {
	engine := open(t, nil)
	ctx, cancel := context.WithCancel(background)
	cancel()
	if _, err := engine.Generate(ctx, short()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := engine.Feedback(ctx, Feedback{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := engine.TrainStep(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if status, err := engine.Status(); err != nil || status.Running+status.Queued != 0 || status.Completed != 0 {
		t.Fatalf("%+v, %v", status, err)
	}
}

// The context of Generate ends the generation; what was made stays, and the reason is told.
func TestTheContextOfGenerateEndsTheGeneration(t *testing.T) {
	engine := open(t, nil)
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	stream, err := engine.Generate(ctx, long())
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Next(background) {
		t.Fatal(stream.Err())
	}
	first := stream.Text()
	cancel()
	rest, err := readAll(background, stream)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	result, err := stream.Result()
	if err != nil || result.FinishReason != FinishCancelled || result.Text != first+rest {
		t.Fatalf("%+v, %v", result, err)
	}
}

// Also when nobody reads.
func TestTheContextOfGenerateEndsItUnread(t *testing.T) {
	engine, last := crowd(t)
	ctx, cancel := context.WithCancel(background)
	stream, err := engine.Generate(ctx, short())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	queued := func() int {
		status, err := engine.Status()
		if err != nil {
			t.Fatal(err)
		}
		return status.Queued
	}
	before := queued()
	last.Close()
	cancel()
	for end := time.Now().Add(patience); queued() > before-2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d are queued, %d were before two were ended", queued(), before)
		}
	}
}

// The context of Next ends the wait alone.
func TestTheContextOfNextEndsTheWait(t *testing.T) {
	_, last := crowd(t)
	defer last.Close()
	began := time.Now()
	ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
	defer cancel()
	if last.Next(ctx) || !errors.Is(last.Err(), context.DeadlineExceeded) {
		t.Fatalf("%q, %v", last.Text(), last.Err())
	}
	if took := time.Since(began); took < 20*time.Millisecond {
		t.Fatalf("it waited %v", took)
	}
	if _, err := last.Result(); !errors.Is(err, ErrBusy) {
		t.Fatalf("the generation ended with the wait: %v", err)
	}
	last.Cancel()
	within(t, patience, func() error { _, err := readAll(background, last); return err })
	if result, err := last.Result(); err != nil || result.FinishReason != FinishCancelled {
		t.Fatalf("%+v, %v", result, err)
	}
}

func TestCancelBeforeDuringAndAfter(t *testing.T) {
	engine := open(t, nil)
	for name, cancelAt := range map[string]int{"before": 0, "during": 1, "after": -1} {
		request := long()
		if cancelAt < 0 {
			request.MaxTokens = 200
		}
		stream := start(t, engine, request)
		whole := ""
		for i := 0; ; i++ {
			if i == cancelAt {
				stream.Cancel()
			}
			if !stream.Next(background) {
				break
			}
			whole += stream.Text()
		}
		stream.Cancel()
		result, err := stream.Result()
		if stream.Err() != nil || err != nil || result.Text != whole {
			t.Fatalf("%s: %v, %+v, %v", name, stream.Err(), result, err)
		}
		if cancelled := result.FinishReason == FinishCancelled; cancelled != (cancelAt >= 0) {
			t.Errorf("%s: it ended by %q", name, result.FinishReason)
		}
	}
}

func TestAWaiterIsWokenByWhateverEndsIt(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*Engine, *Stream)
		err  error
	}{
		{"cancel", func(_ *Engine, s *Stream) { s.Cancel() }, nil},
		{"close", func(_ *Engine, s *Stream) { s.Close() }, ErrClosed},
		{"shutdown", func(e *Engine, _ *Stream) { e.Close() }, ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine, last := crowd(t)
			ended := make(chan error, 1)
			go func() { _, err := readAll(background, last); ended <- err }()
			time.Sleep(20 * time.Millisecond)
			select {
			case err := <-ended:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			c.end(engine, last)
			select {
			case err := <-ended:
				if !errors.Is(err, c.err) {
					t.Fatalf("it ended with %v, expected %v", err, c.err)
				}
			case <-time.After(patience):
				t.Fatal("it was not woken")
			}
		})
	}
}

func TestAStreamThatWasClosedEarlyHasNoResult(t *testing.T) {
	engine := open(t, nil)
	stream := start(t, engine, long())
	stream.Close()
	stream.Close()
	stream.Cancel()
	if _, err := stream.Result(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if stream.Next(background) || !errors.Is(stream.Err(), ErrClosed) {
		t.Fatal(stream.Err())
	}
}

func TestThirtyTwoGoroutinesOnOneEngine(t *testing.T) {
	engine := open(t, map[string]any{"serve.queue": 256})
	alone, err := engine.Complete(background, short())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := 0; i < 32; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			for round := 0; round < 4; round++ {
				stream, err := engine.Generate(background, short())
				if err != nil {
					t.Error(err)
					return
				}
				if (i+round)%4 == 0 { // Some leave early.
					stream.Next(background)
					stream.Close()
					continue
				}
				whole, err := readAll(background, stream)
				if err != nil || whole != alone.Text {
					t.Errorf("%q, %v, expected %q", whole, err, alone.Text)
				}
				if _, err := engine.Feedback(background, Feedback{GenerationID: stream.ID(), Rating: Ptr(0.5)}); err != nil {
					t.Error(err)
				}
			}
		}(i)
	}
	all.Wait()
}

// Streams that nobody closed give back their goroutines and, once collected, their places.
func TestForgottenStreamsAreEnded(t *testing.T) {
	engine := open(t, map[string]any{"serve.slots": 1, "serve.queue": 256})
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	request := long()
	for i := 0; i < 100; i++ {
		if _, err := engine.Generate(ctx, request); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		status, err := engine.Status()
		if err != nil {
			t.Fatal(err)
		}
		// The runtime's own for finalizers may have come.
		if status.Running+status.Queued == 0 && runtime.NumGoroutine() < before+10 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d running, %d queued, %d goroutines", status.Running, status.Queued, runtime.NumGoroutine())
		}
	}
}

// A thousand at once, each with a goroutine and a context of its own.
func TestAThousandStreamsEndSoonAfterTheirCancel(t *testing.T) {
	engine := open(t, map[string]any{"serve.queue": 2000, "serve.slots": 8})
	request := long()
	const count = 1000
	var streams [count]*Stream
	for i := range streams {
		streams[i] = start(t, engine, request)
	}
	before := runtime.NumGoroutine()
	times := make([]float64, count)
	var all sync.WaitGroup
	for i, stream := range streams {
		all.Add(1)
		go func(i int, stream *Stream) {
			defer all.Done()
			began := time.Now()
			stream.Cancel()
			for stream.Next(background) {
			}
			times[i] = time.Since(began).Seconds() * 1e3
			if _, err := stream.Result(); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		}(i, stream)
	}
	all.Wait()
	sort.Float64s(times)
	t.Logf("from cancel to end: median %.1f ms, worst %.1f ms", times[count/2], times[count-1])
	if times[count-1] > 2000 {
		t.Errorf("an end came after %.0f ms", times[count-1])
	}
	status, err := engine.Status()
	if err != nil || status.Running+status.Queued != 0 {
		t.Fatalf("%+v, %v", status, err)
	}
	// The last ones may be on their way out, and the runtime's own for finalizers may have come.
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before+2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// What a token costs on its way through this package, the making of it left out by reading what is there already.
func BenchmarkToken(b *testing.B) {
	engine := open(b, nil)
	request := long()
	request.MaxTokens = 900
	b.ReportAllocs()
	completed := func() uint64 {
		status, err := engine.Status()
		if err != nil {
			b.Fatal(err)
		}
		return status.Completed
	}
	var reading time.Duration
	for read := 0; read < b.N; {
		before := completed()
		stream := start(b, engine, request)
		for end := time.Now().Add(patience); completed() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.Fatal("the answer did not end")
			}
		}
		// Without the end, which waits for the disk.
		began := time.Now()
		last := began
		for stream.Next(background) {
			read++
			last = time.Now()
		}
		reading += last.Sub(began)
		if err := stream.Err(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(reading.Nanoseconds())/float64(read), "ns/token")
	}
}
