// The functions that C calls: one tells a stream that there is something to be polled, one hands on a line of the log. Never call
// back into C.

package apa

// #include <stddef.h>
// #include <stdint.h>
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

// apaGoWake runs on a thread of the library, and decoding waits for it.
//
//export apaGoWake
func apaGoWake(hook C.uintptr_t) {
	select {
	case cgo.Handle(hook).Value().(chan struct{}) <- struct{}{}:
	default: // It was told already and has not looked yet.
	}
}

// apaGoLog runs on a thread of the library, and what logs waits for it.
//
//export apaGoLog
func apaGoLog(level C.int32_t, json *C.char, length C.size_t) {
	logLine(LogLevel(level), unsafe.Slice((*byte)(unsafe.Pointer(json)), int(length)))
}
