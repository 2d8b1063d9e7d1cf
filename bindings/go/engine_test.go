// Opening, closing, looking: what each refuses and leaves behind. Tests no generation.

package apa

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestOpenSaysWhatIsWrong(t *testing.T) {
	model, dir := tinyModel(t), t.TempDir()
	done, cancel := context.WithCancel(background)
	cancel()
	for _, c := range []struct {
		name    string
		ctx     context.Context
		options Options
		class   error
		says    string
	}{
		{"missing model", background, Options{Model: filepath.Join(dir, "missing.gguf"), Data: dir}, ErrModel, "missing.gguf"},
		{"no model", background, Options{Data: dir}, ErrArg, "model"},
		{"misspelt setting", background, Options{Model: model, Data: dir, Settings: map[string]any{"train.lamda": 0.2}}, ErrArg, "train.lambda"},
		{"wrong kind", background, Options{Model: model, Data: dir, Settings: map[string]any{"serve.slots": "many"}}, ErrArg, "serve.slots"},
		{"not JSON", background, Options{Model: model, Data: dir, Settings: map[string]any{"train.lambda": math.NaN()}}, ErrArg, "train.lambda"},
		{"not UTF-8", background, Options{Model: "mod\xffel", Data: dir}, ErrArg, "byte 3"},
		{"done context", done, Options{Model: model, Data: dir}, context.Canceled, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine, err := Open(c.ctx, c.options)
			if engine != nil {
				engine.Close()
				t.Fatal("it opened")
			}
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error is %v, expected %v that says %q", err, c.class, c.says)
			}
		})
	}
}

func TestErrorsHaveAClassAndASentence(t *testing.T) {
	_, err := Open(background, Options{Model: "nowhere.gguf", Data: t.TempDir()})
	var failure *Error
	if !errors.As(err, &failure) || failure.Code != ErrModel || !strings.Contains(failure.Message, "nowhere.gguf") {
		t.Fatalf("%#v", err)
	}
	if errors.Is(err, ErrArg) || !strings.HasPrefix(err.Error(), "apa: ") {
		t.Fatal(err)
	}
}

func TestADataFolderHasOneEngine(t *testing.T) {
	options := Options{Model: tinyModel(t), Data: t.TempDir(), Settings: map[string]any{"train.enabled": false}}
	first, err := Open(background, options)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := Open(background, options); !errors.Is(err, ErrBusy) {
		t.Fatalf("%v, %v", second, err)
	}
	first.Close()
	again, err := Open(background, options)
	if err != nil {
		t.Fatalf("the folder is not free after Close: %v", err)
	}
	again.Close()
}

// A context that ends during the load frees what was loaded: the folder becomes free.
func TestAnOpenThatWasGivenUpLeavesNothing(t *testing.T) {
	options := Options{Model: tinyModel(t), Data: t.TempDir()}
	ctx, cancel := context.WithTimeout(background, time.Millisecond)
	defer cancel()
	if engine, err := Open(ctx, options); err == nil {
		engine.Close()
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	openWhenFree(t, options).Close()
}

func TestAForgottenEngineIsClosed(t *testing.T) {
	options := Options{Model: tinyModel(t), Data: t.TempDir(), Settings: map[string]any{"train.enabled": false}}
	if _, err := Open(background, options); err != nil {
		t.Fatal(err)
	}
	openWhenFree(t, options).Close()
}

// openWhenFree collects garbage until the data folder is free.
func openWhenFree(t *testing.T, options Options) *Engine {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		engine, err := Open(background, options)
		if err == nil {
			return engine
		}
		if !errors.Is(err, ErrBusy) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestStatusTokensAndTemplate(t *testing.T) {
	engine := open(t, nil)
	status, err := engine.Status()
	if err != nil || status.Architecture != "llama" || status.PolicyVersion != 0 || status.Trainer.Batch == 0 {
		t.Fatalf("%+v, %v", status, err)
	}
	if none, err := engine.CountTokens(""); err != nil || none != 0 {
		t.Fatalf("%d, %v", none, err)
	}
	if some, err := engine.CountTokens("the other\x00end"); err != nil || some == 0 {
		t.Fatalf("%d, %v", some, err)
	}
	if _, err := engine.CountTokens("a\xff"); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	text, err := engine.Render(User("hi"))
	if err != nil || text != "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := engine.Render(); !errors.Is(err, ErrArg) {
		t.Fatal(err)
	}
	if LibraryVersion() == "" {
		t.Fatal("the library has no version")
	}
}

func TestAfterCloseEveryCallIsClosed(t *testing.T) {
	engine, stream := crowd(t)
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Generate":    func() error { _, err := engine.Generate(background, short()); return err },
		"Complete":    func() error { _, err := engine.Complete(background, short()); return err },
		"Chat":        func() error { _, err := engine.Chat(background, User("hi")); return err },
		"Status":      func() error { _, err := engine.Status(); return err },
		"CountTokens": func() error { _, err := engine.CountTokens("a"); return err },
		"Render":      func() error { _, err := engine.Render(User("hi")); return err },
		"Feedback": func() error {
			_, err := engine.Feedback(background, Feedback{GenerationID: "x", Thumbs: Up})
			return err
		},
		"Prefer": func() error {
			_, err := engine.Prefer(background, Preference{ChosenID: "x", RejectedID: "y"})
			return err
		},
		"TrainStep":     func() error { _, err := engine.TrainStep(background); return err },
		"TrainerStatus": func() error { _, err := engine.TrainerStatus(); return err },
		"Versions":      func() error { _, err := engine.Versions(); return err },
		"ActiveVersion": func() error { _, err := engine.ActiveVersion(); return err },
		"Activate":      func() error { return engine.Activate(background, 0) },
		"Rollback":      func() error { _, err := engine.Rollback(background); return err },
		"Sync":          func() error { _, err := engine.Sync(background); return err },
		"Next":          func() error { _, err := readAll(background, stream); return err },
	} {
		if err := wantErr(call(), ErrClosed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
