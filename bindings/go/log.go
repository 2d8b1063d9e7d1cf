// The log of the library, line by line, to a function of the application. Never prints.

package apa

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
)

// LogLevel says how important a line of the log is; the smaller, the more.
type LogLevel int

// The levels.
const (
	LogError LogLevel = 1 + iota
	LogWarn
	LogInfo
	LogDebug
	LogTrace
)

// String is the level's name: "error", "warn", "info", "debug", "trace".
func (l LogLevel) String() string {
	switch l {
	case LogError:
		return "error"
	case LogWarn:
		return "warn"
	case LogInfo:
		return "info"
	case LogDebug:
		return "debug"
	case LogTrace:
		return "trace"
	}
	return fmt.Sprintf("LogLevel(%d)", int(l))
}

// LogLine is a line of the log.
type LogLine struct {
	Level   LogLevel       // How important it is.
	Target  string         // Which part of the library says it.
	Message string         // What it says.
	Fields  map[string]any // The rest of it, as encoding/json reads it.
}

// logHook is who gets the log.
type logHook struct {
	most LogLevel
	line func(LogLine)
}

var currentLog atomic.Pointer[logHook]

// SetLog has log called for each line of the log up to level. One function a process: it replaces the earlier one, and nil takes it
// back. When this returns the earlier one is not running and never will be. log runs on threads of the library, one line at a time,
// and what logs waits for it; what it calls of this package fails with [ErrArg], and it must not wait for a goroutine that is in a
// call of it.
//
// Errors: [ErrArg] for another level, and from inside log.
func SetLog(level LogLevel, log func(LogLine)) error {
	var hook *logHook
	if log != nil {
		hook = &logHook{level, log}
	}
	before := currentLog.Swap(hook)
	if err := setLog(level, log != nil); err != nil {
		currentLog.CompareAndSwap(hook, before)
		return err
	}
	return nil
}

// logLine hands on a line that the library gave.
func logLine(level LogLevel, body []byte) {
	hook := currentLog.Load()
	if hook == nil || level > hook.most {
		return
	}
	line := LogLine{Level: level}
	if json.Unmarshal(body, &line.Fields) != nil {
		line.Message = string(body)
	}
	for name, value := range map[string]*string{"target": &line.Target, "message": &line.Message, "level": nil} {
		if said, ok := line.Fields[name].(string); ok && value != nil {
			*value = said
		}
		delete(line.Fields, name)
	}
	hook.line(line)
}
