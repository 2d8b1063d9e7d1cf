// The one function that C calls: it tells a stream that there is something to be polled. Never calls back into C.

package apa

// #include <stdint.h>
import "C"

import "runtime/cgo"

// apaGoWake runs on a thread of the library, and decoding waits for it.
//
//export apaGoWake
func apaGoWake(hook C.uintptr_t) {
	select {
	case cgo.Handle(hook).Value().(chan struct{}) <- struct{}{}:
	default: // It was told already and has not looked yet.
	}
}
