package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gate is a writer that nobody reads until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	got  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got.Write(p)
}

// TestLinesNeverBlock writes more than fits while nobody reads. What is passed on later is in
// order, and says how much is missing.
func TestLinesNeverBlock(t *testing.T) {
	for _, json := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := &gate{open: make(chan struct{})}
			lines := NewLines(g)
			log := NewLogger(lines, "info", json)
			pad := strings.Repeat("x", 1000)
			const n = 2 * maxWaitingBytes / 1000
			for i := range n {
				log.Info("line", "i", i, "pad", pad)
			}
			if lines.Flush(time.Second) {
				t.Error("Flush says that all is passed on while nobody reads")
			}
			close(g.open)
			if !lines.Flush(time.Minute) {
				t.Fatal("Flush says that not all is passed on")
			}
			out := strings.Split(strings.TrimSpace(g.got.String()), "\n")
			kept := len(out) - 1
			for i, line := range out[:kept] {
				if want := fmt.Sprint(map[bool]string{false: "i=", true: `"i":`}[json], i); !strings.Contains(line, want) {
					t.Fatalf("line %d is %.200s", i, line)
				}
			}
			if want := fmt.Sprint(map[bool]string{false: "lines=", true: `"lines":`}[json], n-kept); !strings.Contains(out[kept], want) {
				t.Errorf("of %d lines %d came, and the last is %q, want %s", n, kept, out[kept], want)
			}
			if kept < maxWaitingBytes/2000 || g.got.Len() > maxWaitingBytes+2000 {
				t.Errorf("%d lines of %d bytes were kept", kept, g.got.Len())
			}
			log.Info("after")
			lines.Flush(time.Minute)
			if !strings.Contains(g.got.String(), "after") {
				t.Error("nothing is passed on any more")
			}
		})
	}
}

// TestLongValuesAreCut logs names and errors of 2 MB.
func TestLongValuesAreCut(t *testing.T) {
	long := strings.Repeat("ä", 1<<20)
	for _, json := range []bool{false, true} {
		var out bytes.Buffer
		log := NewLogger(&out, "info", json).With("client", long)
		log.Warn("message "+long, "topic", long, "error", errors.New(long), "topics", []string{long, long}, "short", []string{"a"}, "n", 7)
		if out.Len() > 8*maxValueBytes {
			t.Errorf("the line has %d bytes", out.Len())
		}
		for _, want := range []string{"(2097152 bytes)", "short", "7"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the line has no %q", want)
			}
		}
	}
}
