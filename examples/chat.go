// The whole loop on one page: talk, rate, learn, talk again, go back.
//
//	cargo build --release
//	cd bindings/go
//	export CGO_LDFLAGS=-L$PWD/../../target/release LD_LIBRARY_PATH=$PWD/../../target/release
//	go run ../../examples/chat.go MODEL.gguf DATA_DIR
package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"

	apa "github.com/libapa/libapa/bindings/go"
)

const (
	answers = 16
	wanted  = 80
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintf(os.Stderr, "usage: %s MODEL.gguf DATA_DIR\n", os.Args[0])
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, model, data string) error {
	engine, err := apa.Open(ctx, apa.Options{
		Model: model,
		Data:  data,
		// This program says when to train; by default the engine does so by itself.
		Settings: map[string]any{"train.auto": false},
	})
	if err != nil {
		return err
	}
	defer engine.Close()

	for i := 0; i < answers; i++ {
		answer, err := talk(ctx, engine)
		if err != nil {
			return err
		}
		// Likes answers of about wanted letters: 1 at that length, falling towards -1.
		off := math.Abs(float64(len(answer.Text) - wanted))
		rating := 2*wanted/(wanted+off) - 1
		if _, err := engine.Feedback(ctx, apa.Feedback{GenerationID: answer.ID, Rating: &rating}); err != nil {
			return err
		}
	}

	step, err := engine.TrainStep(ctx)
	if err != nil {
		return err
	}
	if !step.Published {
		return fmt.Errorf("the step published no version: %s", step.Reason)
	}
	fmt.Printf("training: %d answers, mean rating %.3f\n", step.Metrics.Samples, step.Metrics.MeanReward)
	after, err := talk(ctx, engine)
	if err != nil {
		return err
	}
	back, err := engine.Rollback(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("answered by version %d, back to %d\n", after.PolicyVersion, back)
	return nil
}

// talk prints an answer as it comes.
func talk(ctx context.Context, engine *apa.Engine) (*apa.Result, error) {
	stream, err := engine.Generate(ctx, apa.Request{
		Messages:  []apa.Message{apa.User("Name a colour.")},
		MaxTokens: 64,
	})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	for stream.Next(ctx) {
		fmt.Print(stream.Text())
	}
	fmt.Println()
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return stream.Result()
}
