// The log: its lines, and how it is taken back. Tests not what is logged.

package apa

import (
	"errors"
	"sync"
	"testing"
)

func TestTheLogGoesToItsFunctionUntilItIsTakenBack(t *testing.T) {
	var lock sync.Mutex
	var lines []LogLine
	var inside error
	hook := func(line LogLine) {
		nested := SetLog(LogInfo, nil)
		lock.Lock()
		defer lock.Unlock()
		lines, inside = append(lines, line), nested
	}
	taken := func() []LogLine {
		lock.Lock()
		defer lock.Unlock()
		all := lines
		lines = nil
		return all
	}
	for _, level := range []LogLevel{0, 6, -1} {
		if err := SetLog(level, hook); !errors.Is(err, ErrArg) {
			t.Fatal(level, err)
		}
	}
	if err := SetLog(LogDebug, hook); err != nil {
		t.Fatal(err)
	}
	open(t, nil).Close()
	if !errors.Is(inside, ErrArg) {
		t.Fatalf("a call from inside the function: %v", inside)
	}
	said := taken()
	if len(said) == 0 {
		t.Fatal("opening an engine logged nothing")
	}
	for _, line := range said {
		if line.Message == "" || line.Target == "" || line.Level < LogError || line.Level > LogDebug || line.Fields["level"] != nil {
			t.Fatalf("%+v", line)
		}
	}
	if err := SetLog(0, nil); err != nil {
		t.Fatal(err)
	}
	open(t, nil).Close()
	if said := taken(); len(said) != 0 {
		t.Fatalf("after it was taken back: %+v", said)
	}
}

// Engines come and go while the function is set, replaced and taken back.
func TestTheLogIsSafeWhileEnginesEnd(t *testing.T) {
	defer SetLog(0, nil)
	stop := make(chan struct{})
	var setting sync.WaitGroup
	setting.Add(1)
	go func() {
		defer setting.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			var hook func(LogLine)
			if i%3 > 0 {
				hook = func(LogLine) {}
			}
			if err := SetLog(LogTrace, hook); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for i := 0; i < 3; i++ {
		engine := open(t, nil)
		stream := start(t, engine, short())
		stream.Next(background)
		engine.Close()
	}
	close(stop)
	setting.Wait()
}
