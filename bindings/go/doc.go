// Package apa serves a language model in this process and keeps aligning it with the people who use it: the Go face of libapa.
//
// An engine loads a quantized GGUF, answers requests, records every answer, takes ratings, and when enough are in trains a
// small adapter on the same frozen weights and serves it from the next request on.
//
//	engine, err := apa.Open(ctx, apa.Options{Model: "model.gguf", Data: "data"})
//	if err != nil {
//		return err
//	}
//	defer engine.Close()
//
//	stream, err := engine.Generate(ctx, apa.Request{Messages: []apa.Message{apa.User("Name a colour.")}})
//	if err != nil {
//		return err
//	}
//	defer stream.Close()
//	for stream.Next(ctx) {
//		fmt.Print(stream.Text())
//	}
//	if err := stream.Err(); err != nil {
//		return err
//	}
//	_, err = engine.Feedback(ctx, apa.Feedback{GenerationID: stream.ID(), Thumbs: apa.Up})
//
// # Contexts
//
// The context of [Engine.Generate] is the generation's: when it is done the generation ends, whoever waits for it. The context
// of [Stream.Next] is that of one wait. Calls that take long ([Open], [Engine.TrainStep], [Engine.Activate],
// [Engine.Rollback]) return when their context is done; what they have begun goes on without them.
//
// # Goroutines
//
// An [Engine] may be used from any number of goroutines. A [Stream] is read by one; [Stream.Cancel] and [Stream.Close] may
// come from any. A waiting goroutine takes no thread. Close what was opened; what was forgotten is closed when the garbage
// collector finds it.
//
// # Errors
//
// Errors of the library are of type [*Error] and unwrap to their [Code]:
//
//	if errors.Is(err, apa.ErrBusy) { ... }
//
// A call that ended for its context gives the error of the context.
//
// # Logging
//
// The library logs nothing until [SetLog] says where to.
//
// # Building
//
// The package carries its header and wants libapa, for which the linker looks where CGO_LDFLAGS says. Installed with
// `make install`:
//
//	export PKG_CONFIG_PATH=/usr/local/lib/pkgconfig CGO_LDFLAGS="$(pkg-config --libs apa)" LD_LIBRARY_PATH=/usr/local/lib
//	go get github.com/libapa/libapa/bindings/go && go build
//
// From a checkout, without installing:
//
//	cargo build --release
//	export CGO_LDFLAGS=-L$PWD/target/release LD_LIBRARY_PATH=$PWD/target/release
//	cd bindings/go && go run ../../examples/chat.go MODEL.gguf DATA_DIR
package apa
