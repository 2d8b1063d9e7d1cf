// Runs cases.json through the Go package: run CASES MODEL DATA. Prints what run.c prints.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	apa "github.com/libapa/libapa/bindings/go"
)

type request struct {
	Messages      []apa.Message
	Prompt        any
	MaxTokens     int `json:"max_tokens"`
	Temperature   *float64
	TopK          int                `json:"top_k"`
	TopP          float64            `json:"top_p"`
	MinP          float64            `json:"min_p"`
	RepeatPenalty float64            `json:"repeat_penalty"`
	LogitBias     map[uint32]float64 `json:"logit_bias"`
	Seed          *uint64
	Stop          []string
}

type step struct {
	Op, Engine, Gen, Model, Data, ID, Hex, Text string
	Setting                                     []any
	Request                                     request
	PromptRepeat                                []any `json:"prompt_repeat"`
	TextRepeat                                  []any `json:"text_repeat"`
	Messages                                    []apa.Message
	TimeoutMS                                   int `json:"timeout_ms"`
	Quiet                                       bool
	Rating                                      float64
	Version                                     uint64
	Threads                                     int
}

var (
	background  = context.Background()
	engines     map[string]*apa.Engine
	generations map[string]*apa.Stream
	model, data string
)

var names = map[apa.Code]string{apa.ErrArg: "ARG", apa.ErrClosed: "CLOSED", apa.ErrBusy: "BUSY", apa.ErrModel: "MODEL",
	apa.ErrTrain: "TRAIN", apa.ErrIO: "IO", apa.ErrCallback: "CALLBACK", apa.ErrUnsupported: "UNSUPPORTED",
	apa.ErrNoMemory: "NOMEM", apa.ErrPanic: "PANIC"}

func nameOf(err error) string {
	var failed *apa.Error
	switch {
	case err == nil:
		return "OK"
	case errors.Is(err, context.DeadlineExceeded):
		return "TIMEOUT"
	case errors.As(err, &failed):
		return names[failed.Code]
	}
	return err.Error()
}

func words(pair []any) string { return strings.Repeat(pair[0].(string), int(pair[1].(float64))) }

func (s step) request() apa.Request {
	r := s.Request
	all := apa.Request{Messages: r.Messages, MaxTokens: r.MaxTokens, Temperature: r.Temperature, TopK: r.TopK, TopP: r.TopP,
		MinP: r.MinP, RepeatPenalty: r.RepeatPenalty, LogitBias: r.LogitBias, Seed: r.Seed, Stop: r.Stop}
	switch prompt := r.Prompt.(type) {
	case string:
		all.Prompt = prompt
	case []any:
		for _, token := range prompt {
			all.Tokens = append(all.Tokens, uint32(token.(float64)))
		}
	}
	if s.PromptRepeat != nil {
		all.Prompt = words(s.PromptRepeat)
	}
	return all
}

func open(s step) error {
	settings := map[string]any{"serve.context": 4096, "serve.threads": 1, "serve.speculate": false, "train.auto": false, "train.threads": 1}
	if s.Setting != nil {
		settings[s.Setting[0].(string)] = s.Setting[1]
	}
	options := apa.Options{Model: model, Data: filepath.Join(data, s.Data), Settings: settings}
	if s.Model != "" {
		options.Model = filepath.Join(data, "missing.gguf")
	}
	engine, err := apa.Open(background, options)
	if err == nil {
		engines[s.Engine] = engine
	}
	return err
}

func pull(s step) (string, string) {
	stream, text := generations[s.Gen], ""
	for stream.Next(background) {
		text += stream.Text()
	}
	if s.Quiet {
		text = ""
	}
	text = hex.EncodeToString([]byte(text))
	if err := stream.Err(); err != nil {
		return text, nameOf(err)
	}
	if result, err := stream.Result(); err != nil {
		return text, nameOf(err)
	} else if result.FinishReason == apa.FinishCancelled {
		return text, "CANCELLED"
	}
	return text, "DONE"
}

func many(s step) string {
	var all sync.WaitGroup
	var lock sync.Mutex
	done := 0
	for i := 0; i < s.Threads; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := engines[s.Engine].Complete(background, s.request()); err == nil {
				lock.Lock()
				done++
				lock.Unlock()
			}
		}()
	}
	all.Wait()
	return fmt.Sprint(done)
}

func run(s step) (string, string) {
	engine, stream := engines[s.Engine], generations[s.Gen]
	value, err := "", error(nil)
	switch s.Op {
	case "open":
		err = open(s)
	case "close":
		err = engine.Close()
	case "start":
		var started *apa.Stream
		if started, err = engine.Generate(background, s.request()); err == nil {
			generations[s.Gen] = started
		}
	case "pull":
		return pull(s)
	case "next":
		ctx := background
		if s.TimeoutMS >= 0 {
			limited, stop := context.WithTimeout(ctx, time.Duration(s.TimeoutMS)*time.Millisecond)
			defer stop()
			ctx = limited
		}
		if !stream.Next(ctx) {
			err = stream.Err()
		}
	case "cancel":
		stream.Cancel()
	case "free":
		err = stream.Close()
	case "result":
		var result *apa.Result
		if result, err = stream.Result(); err == nil {
			value = fmt.Sprint(result.FinishReason, " ", result.PolicyVersion)
		}
	case "feedback":
		id := s.ID
		if stream != nil {
			id = stream.ID()
		}
		_, err = engine.Feedback(background, apa.Feedback{GenerationID: id, Rating: &s.Rating})
	case "step":
		var step apa.Step
		if step, err = engine.TrainStep(background); err == nil {
			value = map[bool]string{true: "published", false: "skipped"}[step.Published]
		}
	case "policy", "rollback", "sync":
		var version uint64
		switch s.Op {
		case "policy":
			version, err = engine.ActiveVersion()
		case "sync":
			version, err = engine.Sync(background)
		default:
			version, err = engine.Rollback(background)
		}
		if err == nil {
			value = fmt.Sprint(version)
		}
	case "activate":
		err = engine.Activate(background, s.Version)
	case "versions":
		var versions []apa.Version
		versions, err = engine.Versions()
		value = fmt.Sprint(len(versions))
	case "count":
		text := s.Text
		if s.Hex != "" {
			bytes, _ := hex.DecodeString(s.Hex)
			text = string(bytes)
		} else if s.TextRepeat != nil {
			text = words(s.TextRepeat)
		}
		var count int
		if count, err = engine.CountTokens(text); err == nil {
			value = fmt.Sprint(count)
		}
	case "render":
		value, err = engine.Render(s.Messages...)
		value = hex.EncodeToString([]byte(value))
	case "many":
		value = many(s)
	default:
		panic("no operation " + s.Op)
	}
	return value, nameOf(err)
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: run CASES MODEL DATA")
		os.Exit(2)
	}
	text, err := os.ReadFile(os.Args[1])
	var cases []struct {
		Name  string
		Only  []string
		Steps []step
	}
	if err == nil {
		err = json.Unmarshal(text, &cases)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	model, data = os.Args[2], os.Args[3]
	for _, test := range cases {
		if test.Only != nil && !strings.Contains(strings.Join(test.Only, " "), "go") {
			continue
		}
		engines, generations = map[string]*apa.Engine{}, map[string]*apa.Stream{}
		for number, step := range test.Steps {
			value, status := run(step)
			fmt.Printf("%s\t%d\t%s\t%s\n", test.Name, number, value, status)
		}
		for _, stream := range generations {
			stream.Close()
		}
		for _, engine := range engines {
			engine.Close()
		}
	}
}
