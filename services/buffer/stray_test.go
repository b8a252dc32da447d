package buffer

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// await returns the first line that contains all of the words.
func (l *lines) await(t *testing.T, words ...string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		l.mu.Lock()
		all := l.b.String()
		l.mu.Unlock()
	next:
		for line := range strings.Lines(all) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue next
				}
			}
			return line
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Fatalf("no line with %q in:\n%s", words, l.b.String())
	return ""
}

// TestRenamedQueueIsNamed renames a queue in the file while records are pending in it, and back.
func TestRenamedQueueIsNamed(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil)
	r.appended(r.appendStream(), batch("t", 0, 10, "v"))
	r.stop()
	if err := os.MkdirAll(filepath.Join(dir, "lost+found"), 0o700); err != nil { // no queue
		t.Fatal(err)
	}
	var log lines
	s, err := New(config.Buffer{DataDir: dir, Queues: map[string]*config.Queue{}}, Deps{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.warnStray(t.Context())
	log.await(t, "level=WARN", "queue=c", "all: 10 records", "not in the configuration")
	if strings.Contains(log.b.String(), "lost+found") {
		t.Errorf("what is no queue is named:\n%s", log.b.String())
	}
	r = start(t, dir, nil) // it was only read
	if got := r.assign(r.appendStream(), "t"); got.ResumeOffset != 10 {
		t.Errorf("renamed back, it goes on at %d, want 10", got.ResumeOffset)
	}
}

// TestStrayQueuesAreLookedFor: Run does it, and a configured queue is not one.
func TestStrayQueuesAreLookedFor(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil)
	r.appended(r.appendStream(), batch("t", 0, 10, "v"))
	r.stop()
	if err := os.Rename(filepath.Join(dir, "c"), filepath.Join(dir, "former")); err != nil {
		t.Fatal(err)
	}
	var log lines
	start(t, dir, func(_ *config.Queue, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	log.await(t, "level=WARN", "queue=former", "all: 10 records")
	log.mu.Lock()
	defer log.mu.Unlock()
	if strings.Contains(log.b.String(), "queue=c dir=") {
		t.Errorf("a queue of the configuration is named:\n%s", log.b.String())
	}
}
