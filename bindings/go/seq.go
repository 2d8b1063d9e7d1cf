//go:build go1.23

// Streams as sequences, for Go 1.23 and newer. Adds nothing else.

package apa

import (
	"context"
	"iter"
)

// All is the rest of the text, piece by piece; the last pair has the error that ended it, if one did. Leaving the loop early
// closes the stream.
//
//	for text, err := range stream.All(ctx) {
//		if err != nil {
//			return err
//		}
//		fmt.Print(text)
//	}
func (s *Stream) All(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for s.Next(ctx) {
			if !yield(s.Text(), nil) {
				s.Close()
				return
			}
		}
		if err := s.Err(); err != nil {
			yield("", err)
		}
	}
}
