// What went wrong: classes for errors.Is, sentences for people. Never holds text of prompts or answers.

package apa

import (
	"fmt"
	"unicode/utf8"
)

// Code is a class of failure, and an error that [errors.Is] finds in every [*Error] of the class. The numbers are those of apa.h;
// they are stable.
type Code int32

// The classes of failure.
const (
	ErrArg         Code = -1  // The caller's input is wrong: an argument, an option, a request, an unknown id.
	ErrClosed      Code = -2  // The engine or the stream has been closed.
	ErrBusy        Code = -3  // A bounded resource is taken: the queue is full, the data folder is locked.
	ErrModel       Code = -4  // The model file is missing, damaged or of another kind, or it could not be run.
	ErrTrain       Code = -5  // Training failed; serving is untouched.
	ErrIO          Code = -6  // A file, the disk or the record failed.
	ErrCallback    Code = -7  // A function of the application failed.
	ErrUnsupported Code = -8  // This build, model or architecture can't do that.
	ErrNoMemory    Code = -9  // Memory ran out.
	ErrPanic       Code = -10 // A bug of the library, caught at the boundary. The library stays usable.
)

var codeTexts = map[Code]string{
	ErrArg: "invalid argument", ErrClosed: "closed", ErrBusy: "busy", ErrModel: "the model can't be used",
	ErrTrain: "training failed", ErrIO: "input or output failed", ErrCallback: "a function of the application failed",
	ErrUnsupported: "not supported", ErrNoMemory: "out of memory", ErrPanic: "internal error",
}

func (c Code) text() string {
	if text, ok := codeTexts[c]; ok {
		return text
	}
	return fmt.Sprintf("status %d", int32(c))
}

// Error names the class.
func (c Code) Error() string { return "apa: " + c.text() }

// Error is a failure of the library.
type Error struct {
	Code    Code   // Its class.
	Message string // One sentence that says what went wrong and what was expected.
}

func (e *Error) Error() string { return "apa: " + e.Message }

// Unwrap returns the class, so that errors.Is(err, apa.ErrBusy) holds.
func (e *Error) Unwrap() error { return e.Code }

func errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// text is a named piece of a caller's text.
type text struct{ name, value string }

// checkTexts refuses what is not UTF-8. encoding/json would silently replace it.
func checkTexts(texts ...text) error {
	for _, t := range texts {
		if utf8.ValidString(t.value) {
			continue
		}
		at := 0
		for {
			r, size := utf8.DecodeRuneInString(t.value[at:])
			if r == utf8.RuneError && size <= 1 {
				return errorf(ErrArg, "%s is not valid UTF-8 from byte %d on", t.name, at)
			}
			at += size
		}
	}
	return nil
}
