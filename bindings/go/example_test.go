// The first page of the documentation, run. Tests nothing else.

package apa_test

import (
	"context"
	"fmt"
	"os"

	apa "github.com/libapa/libapa/bindings/go"
)

func Example() {
	ctx := context.Background()
	data, err := os.MkdirTemp("", "apa")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(data)
	engine, err := apa.Open(ctx, apa.Options{
		Model:    os.Getenv("APA_TINY_MODEL"),
		Data:     data,
		Settings: map[string]any{"serve.context": 1024, "serve.max_tokens": 32},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()

	answer, err := engine.Chat(ctx, apa.User("Name a colour."))
	if err != nil {
		fmt.Println(err)
		return
	}
	receipt, err := engine.Feedback(ctx, apa.Feedback{GenerationID: answer.ID, Thumbs: apa.Up})
	fmt.Println(receipt.PolicyVersion, err)
	// Output: 0 <nil>
}
