// Requests and streams: one answer, piece by piece or whole. Never outlives its engine.

package apa

import (
	"context"
	"fmt"
	"runtime"
	"runtime/cgo"
	"sync"
)

// Request asks for an answer to Messages (a chat) or a continuation of Prompt or Tokens: one of the three. What is zero or nil
// is left to the engine.
type Request struct {
	Messages []Message // A conversation, put through the model's chat template.
	Prompt   string    // Plain text.
	Tokens   []uint32  // Tokens as they are.

	MaxTokens        int                // Most tokens to make; else the setting serve.max_tokens.
	Temperature      *float64           // Divides the logits, 0 to 10; 0 is greedy. Else 1.
	TopK             int                // Keep the k most probable tokens; 0 keeps all.
	TopP             float64            // Nucleus mass, up to 1; 0 is 1.
	MinP             float64            // Least probability relative to the most probable token, 0 to 1.
	RepeatPenalty    float64            // Multiplicative penalty on tokens of the last 64; 0 is 1, none.
	FrequencyPenalty float64            // Additive penalty per earlier use, -2 to 2.
	PresencePenalty  float64            // Additive penalty on any earlier use, -2 to 2.
	Seed             *uint64            // Makes the answer repeatable; else drawn, and told in the result.
	IgnoreEOS        bool               // The answer goes on to its limit: what ends answers is never sampled.
	Stop             []string           // Strings that end the answer.
	LogitBias        map[uint32]float64 // Added to the logits of tokens, -100 to 100.
	Grammar          string             // GBNF that the answer is held to.
	ResponseFormat   any                // What it must look like, as in OpenAI's requests: a JSON schema.
	Tools            []Tool             // Tools that the answer to a chat may call.
	ToolChoice       any                // ToolsNone, ToolsAuto, ToolsRequired, or CallOf one; nil is ToolsAuto.
	Logprobs         bool               // Tells the log-probability of each token, in the result.
	TopLogprobs      int                // With Logprobs: also those of this many most probable ones, up to 20; 5 without a chat.
	User             string             // Whom it is for; kept with the record.
	ParseSpecial     bool               // Whether text that spells a control token is that token; else it is text.
	ContinueFinal    *bool              // Whether it goes on with the last message of a chat; nil: with one of the assistant that calls no tools.
}

// Ptr returns a pointer to value, for fields whose zero means something: Temperature: apa.Ptr(0.0).
func Ptr[T any](value T) *T { return &value }

func (r Request) body() (string, error) {
	texts := []text{{"prompt", r.Prompt}, {"user", r.User}, {"grammar", r.Grammar}}
	for i, stop := range r.Stop {
		texts = append(texts, text{fmt.Sprintf("stop[%d]", i), stop})
	}
	if err := checkTexts(texts...); err != nil {
		return "", err
	}
	if err := checkMessages(r.Messages); err != nil {
		return "", err
	}
	if err := checkTools(r.Tools); err != nil {
		return "", err
	}
	var prompt any
	if r.Prompt != "" {
		prompt = r.Prompt
	}
	if r.Tokens != nil {
		if prompt != nil {
			return "", errorf(ErrArg, "the request has both a prompt and tokens, expected one of them")
		}
		prompt = r.Tokens
	}
	// A chat has a flag with a number beside it; a completion has the number alone.
	var logprobs any
	var topLogprobs int
	switch {
	case prompt == nil:
		topLogprobs = r.TopLogprobs
		if r.Logprobs {
			logprobs = true
		}
	case r.Logprobs:
		logprobs = r.TopLogprobs
	case r.TopLogprobs != 0:
		return "", errorf(ErrArg, "top_logprobs is set without logprobs, expected it to be true")
	}
	return encode("the request", struct {
		Messages         []Message          `json:"messages,omitempty"`
		Prompt           any                `json:"prompt,omitempty"`
		MaxTokens        int                `json:"max_tokens,omitempty"`
		Temperature      *float64           `json:"temperature,omitempty"`
		TopK             int                `json:"top_k,omitempty"`
		TopP             float64            `json:"top_p,omitempty"`
		MinP             float64            `json:"min_p,omitempty"`
		RepeatPenalty    float64            `json:"repeat_penalty,omitempty"`
		FrequencyPenalty float64            `json:"frequency_penalty,omitempty"`
		PresencePenalty  float64            `json:"presence_penalty,omitempty"`
		Seed             *uint64            `json:"seed,omitempty"`
		Stop             []string           `json:"stop,omitempty"`
		User             string             `json:"user,omitempty"`
		LogitBias        map[uint32]float64 `json:"logit_bias,omitempty"`
		Grammar          string             `json:"grammar,omitempty"`
		ResponseFormat   any                `json:"response_format,omitempty"`
		Tools            []Tool             `json:"tools,omitempty"`
		ToolChoice       any                `json:"tool_choice,omitempty"`
		Logprobs         any                `json:"logprobs,omitempty"`
		TopLogprobs      int                `json:"top_logprobs,omitempty"`
		ParseSpecial     bool               `json:"parse_special,omitempty"`
		ContinueFinal    *bool              `json:"continue_final_message,omitempty"`
		IgnoreEOS        bool               `json:"ignore_eos,omitempty"`
	}{r.Messages, prompt, r.MaxTokens, r.Temperature, r.TopK, r.TopP, r.MinP, r.RepeatPenalty, r.FrequencyPenalty,
		r.PresencePenalty, r.Seed, r.Stop, r.User, r.LogitBias, r.Grammar, r.ResponseFormat,
		r.Tools, r.ToolChoice, logprobs, topLogprobs, r.ParseSpecial, r.ContinueFinal, r.IgnoreEOS})
}

// Why an answer ended.
const (
	FinishStop      = "stop"      // The model ended its turn, or a stop string matched.
	FinishLength    = "length"    // The token limit or the context was reached.
	FinishCancelled = "cancelled" // It was cancelled.
)

// Usage counts tokens.
type Usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
}

// Alternative is a token that might have been sampled.
type Alternative struct {
	Token   string  `json:"token"`   // Its text; bytes that are not UTF-8 by themselves are replaced.
	Logprob float64 `json:"logprob"` // Under the plain model at temperature 1, in nats; at least -9999.
	Bytes   []byte  `json:"bytes"`   // Its bytes.
	ID      uint32  `json:"id"`      // Its number.
}

// TokenLogprob is a token that was sampled.
type TokenLogprob struct {
	Alternative               // The token.
	Top         []Alternative `json:"top_logprobs"` // The most probable ones there, the most probable first, itself perhaps among them.
}

// Result is a whole answer.
type Result struct {
	ID            string `json:"id"`             // Names the answer, for feedback.
	PolicyVersion uint64 `json:"policy_version"` // The weights that made every token of it.
	Text          string `json:"text"`           // All of the text.
	FinishReason  string `json:"finish_reason"`  // FinishStop, FinishLength or FinishCancelled.
	Seed          uint64 `json:"seed"`           // Repeats the answer on the same weights.
	Usage         Usage  `json:"usage"`          // Its tokens.

	Content   *string        `json:"content"`           // What of Text is said to the user, where that is not all of it.
	Reasoning string         `json:"reasoning_content"` // What of Text was thought before.
	ToolCalls []ToolCall     `json:"tool_calls"`        // The calls that are in Text, where the request has tools.
	Logprobs  []TokenLogprob `json:"logprobs"`          // A token each, if they were asked for; without the one that ended the answer.
}

// generation is what a stream shares with those who may end it. It doesn't know the stream, so that one that was forgotten can be
// collected.
type generation struct {
	handle generationHandle
	hook   cgo.Handle
	wake   chan struct{} // Filled by the library when there is something to be polled.
	closed chan struct{} // Closed with the generation.
	once   sync.Once
}

func (g *generation) close() {
	g.once.Do(func() {
		freeGeneration(g.handle)
		close(g.closed)
		g.hook.Delete() // The library never calls it after the free.
	})
}

// cancelWith ends the generation when ctx is done.
func (g *generation) cancelWith(ctx context.Context) {
	select {
	case <-ctx.Done():
		cancelGeneration(g.handle)
	case <-g.closed:
	}
}

// Stream is an answer being made. One goroutine reads it, with Next, Text, Err and Result; Cancel, Close and ID may be called from
// any. A stream that was read to its end needs no Close.
type Stream struct {
	generation *generation
	engine     *Engine // Not collected before its streams.
	ctx        context.Context
	id         string

	text   string
	err    error
	ended  bool
	result *Result
}

// Generate queues a generation and returns the stream of its text. When ctx is done, then or later, the generation ends; what
// has been made by then can still be read, and Err tells the reason.
//
// Errors: [ErrArg] for a value out of range, an empty prompt, or one longer than the context; [ErrBusy] if the queue is full;
// [ErrUnsupported] for a chat with a model that has no template; [ErrClosed]; the context's.
func (e *Engine) Generate(ctx context.Context, request Request) (*Stream, error) {
	defer runtime.KeepAlive(e)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, err := request.body()
	if err != nil {
		return nil, err
	}
	g := &generation{wake: make(chan struct{}, 1), closed: make(chan struct{})}
	g.hook = cgo.NewHandle(g.wake)
	handle, id, err := startGeneration(e.handle, body, g.hook)
	if err != nil {
		g.hook.Delete()
		return nil, err
	}
	g.handle = handle
	s := &Stream{generation: g, engine: e, ctx: ctx, id: id}
	if ctx.Done() != nil {
		go g.cancelWith(ctx)
	}
	runtime.SetFinalizer(s, func(s *Stream) { s.generation.close() })
	return s, nil
}

// ID names the answer, for feedback.
func (s *Stream) ID() string { return s.id }

// Next waits for more text, which Text then returns. It is false at the end, after a failure, and when ctx is done; Err tells
// which. When only ctx is done the generation goes on, and Next may be called again.
func (s *Stream) Next(ctx context.Context) bool {
	s.text = ""
	if s.ended {
		return false
	}
	s.err = nil
	for {
		if s.err = ctx.Err(); s.err != nil {
			return false
		}
		text, status, err := pollGeneration(s.generation.handle)
		switch {
		case err != nil:
			s.end(nil, err)
			return false
		case status == statusText:
			s.text = text
			return true
		case status != statusNothing:
			s.end(s.take())
			return false
		}
		select {
		case <-s.generation.wake:
		case <-ctx.Done():
		case <-s.generation.closed: // The next poll says so.
		}
	}
}

// take gets the whole of an answer that has ended.
func (s *Stream) take() (*Result, error) {
	body, err := generationResult(s.generation.handle)
	if err != nil {
		return nil, err
	}
	result := new(Result)
	if err := read(body, result); err != nil {
		return nil, err
	}
	if result.FinishReason == FinishCancelled {
		err = s.ctx.Err()
	}
	return result, err
}

func (s *Stream) end(result *Result, err error) {
	s.ended, s.result, s.err = true, result, err
	s.generation.close()
}

// Text is what the last Next got: whole codepoints, "" if it was false.
func (s *Stream) Text() string { return s.text }

// Err says why Next was false: nil if the answer is complete or was ended by Cancel; the error of a context that is done; an
// [*Error] of class [ErrClosed] if the stream or the engine was closed, or [ErrModel] if decoding failed.
func (s *Stream) Err() error { return s.err }

// Result is the whole answer, once Next has been false at its end; also of one that was cancelled, by Cancel or a context.
//
// Errors: [ErrBusy] before the end; [ErrClosed] if the stream was closed before it; the error that the generation ended with.
func (s *Stream) Result() (*Result, error) {
	if s.result != nil {
		return s.result, nil
	}
	if s.ended {
		return nil, s.err
	}
	select {
	case <-s.generation.closed:
		return nil, errorf(ErrClosed, "the stream was closed before the end of the answer")
	default:
		return nil, errorf(ErrBusy, "the answer has not ended, expected Next to have been false")
	}
}

// Cancel asks the generation to end. What has been made can still be read, with FinishCancelled in the result. It does not wait,
// and does nothing on a stream that has ended.
func (s *Stream) Cancel() {
	cancelGeneration(s.generation.handle)
	runtime.KeepAlive(s)
}

// Close ends the generation if it runs, and frees it; a goroutine that waits in Next gets [ErrClosed]. The text and result of an
// answer that was read to its end stay. Closing again does nothing. The error is always nil.
func (s *Stream) Close() error {
	s.generation.close()
	runtime.KeepAlive(s)
	return nil
}

// Complete generates and returns the whole answer. When ctx is done it returns at once, and the generation ends. Errors: as
// [Engine.Generate] and [Stream.Err].
func (e *Engine) Complete(ctx context.Context, request Request) (*Result, error) {
	s, err := e.Generate(ctx, request)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for s.Next(ctx) {
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return s.Result()
}

// Chat answers a conversation with the engine's defaults; [Engine.Complete] has the rest.
func (e *Engine) Chat(ctx context.Context, messages ...Message) (*Result, error) {
	return e.Complete(ctx, Request{Messages: messages})
}
