// News of an engine, pulled: what it learns, and answers that wait to be scored.

package apa

import (
	"context"
	"runtime"
	"runtime/cgo"
	"sync"
)

// Event is a piece of news of what an engine learns. Which fields are set depends on its kind.
type Event struct {
	// Kind is "step_done" (Version, Metrics), "step_dropped" (Reason, Consumed), "version_published" (Version, Parent),
	// "version_activated" (Version), "version_proposed" (Version, Parent, Reason: it waits for a person), "trial_started" (Version,
	// Parent, Share of the users), "trial_advanced" (Version, Share), "version_refused" (Version if it got one, Reason),
	// "version_rolled_back" (Version, Parent, Reason: its ratings fell), "unlearning" (Replayed, Batches: of the replacement of versions
	// that learned from a forgotten user), "unlearned" (Version or Parent serves, Reason: they are removed), "error" (Code, Message),
	// or "missed" (Count: the oldest news were dropped, because the feed was not read in time).
	Kind     string   `json:"event"`
	Version  uint64   `json:"version"`
	Parent   uint64   `json:"parent"`
	Metrics  *Metrics `json:"metrics"`
	Reason   string   `json:"reason"`
	Share    float64  `json:"share"`
	Consumed int      `json:"consumed"`
	Replayed int      `json:"replayed"`
	Batches  int      `json:"batches"`
	Code     string   `json:"code"`
	Message  string   `json:"message"`
	Count    uint64   `json:"count"`
}

// Answer is an answer that ended and may be scored, with [Engine.Reward].
type Answer struct {
	Kind             string `json:"event"`             // "answer", or "missed" (Count).
	GenerationID     string `json:"generation_id"`     // Its name.
	PolicyVersion    uint64 `json:"policy_version"`    // The weights that made it.
	Prompt           string `json:"prompt"`            // The prompt as the model saw it.
	Text             string `json:"text"`              // The answer.
	FinishReason     string `json:"finish_reason"`     // FinishStop or FinishLength.
	CompletionTokens int    `json:"completion_tokens"` // Its length.
	User             string `json:"user"`              // Whom it was for.
	Count            uint64 `json:"count"`             // Answers that were dropped, because the feed was not read in time.
}

// Feed gives news from its opening on, and keeps the newest 256 of those that were not read. Several goroutines may read; each gets
// some.
type Feed[T any] struct {
	open   *openedFeed
	engine *Engine // Not collected before its feeds.
}

// openedFeed doesn't know the feed, so that one that was forgotten can be collected.
type openedFeed struct {
	handle feedHandle
	hook   cgo.Handle
	wake   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (f *openedFeed) close() {
	f.once.Do(func() {
		freeFeed(f.handle)
		close(f.closed)
		f.hook.Delete() // The library never calls it after the free.
	})
}

func subscribe[T any](e *Engine, answers bool) (*Feed[T], error) {
	defer runtime.KeepAlive(e)
	open := &openedFeed{wake: make(chan struct{}, 1), closed: make(chan struct{})}
	open.hook = cgo.NewHandle(open.wake)
	handle, err := openFeed(e.handle, answers, open.hook)
	if err != nil {
		open.hook.Delete()
		return nil, err
	}
	open.handle = handle
	feed := &Feed[T]{open, e}
	runtime.SetFinalizer(feed, func(f *Feed[T]) { f.open.close() })
	return feed, nil
}

// Events opens a feed of what the engine learns. Errors: [ErrBusy] if 64 feeds are open; [ErrClosed].
func (e *Engine) Events() (*Feed[Event], error) { return subscribe[Event](e, false) }

// Answers opens a feed of answers to be scored. Errors: as [Engine.Events].
func (e *Engine) Answers() (*Feed[Answer], error) { return subscribe[Answer](e, true) }

// Next waits for news. Errors: [ErrClosed] once the feed or its engine is closed; the context's.
func (f *Feed[T]) Next(ctx context.Context) (T, error) {
	defer runtime.KeepAlive(f)
	var news T
	for {
		if err := ctx.Err(); err != nil {
			return news, err
		}
		body, status, err := pollFeed(f.open.handle)
		if err != nil {
			f.open.close()
			return news, err
		}
		if status == statusText {
			// Another reader's wake may have been taken by this one.
			select {
			case f.open.wake <- struct{}{}:
			default:
			}
			return news, read(body, &news)
		}
		select {
		case <-f.open.wake:
		case <-ctx.Done():
		case <-f.open.closed: // The next poll says so.
		}
	}
}

// Close frees the feed; whoever waits in Next gets [ErrClosed]. Closing again does nothing. The error is always nil.
func (f *Feed[T]) Close() error {
	f.open.close()
	runtime.KeepAlive(f)
	return nil
}

// Reward gives an answer its reward, from -1 to 1, as a rating of the application; it is on disk when this returns. Errors: as
// [Engine.Feedback].
func (e *Engine) Reward(ctx context.Context, generationID string, reward float64) error {
	defer runtime.KeepAlive(e)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkTexts(text{"the id", generationID}); err != nil {
		return err
	}
	return rewardPut(e.handle, generationID, reward)
}
