package filesink

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
)

// A directory whose time is over gets an empty file that says so, _SUCCESS. That is once all
// source partitions have passed the end of its time by success_after, and no file in use is left
// of it, whoever has it: entries of files hold the buffer's complete time back. A session that
// begins a file in a directory puts an entry for the directory, too, in the same ack, and deletes
// it when the directory has its mark, whoever made it.

const (
	successName = "_SUCCESS"
	// successPrefix is what keys of entries of directories begin with; those of files begin with
	// a number.
	successPrefix = "success/"
	// successBatch is how many entries are deleted with one ack.
	successBatch = 100
	// maxCompletions bounds the directories that wait for their mark, of which half may be of a
	// time farAhead: those wait for ever when the times of records are wrong. A session may have
	// 100,000 entries, and files need some.
	maxCompletions = 50_000
	farAhead       = 2 * 365 * 24 * time.Hour
	// unmarkedQuiet is the time between two lines about directories that get no mark.
	unmarkedQuiet = time.Minute
)

// completion is the entry of a directory that is to be marked. Its JSON form is a format that
// later versions must read.
type completion struct {
	Version int    `json:"v"`
	Dir     string `json:"dir"`
	DueMs   int64  `json:"due"` // when the time of records has come this far, since 1970

	failing bool
	retryAt time.Time
	backoff backoff.Backoff
}

func (c *completion) key() string { return successPrefix + shorten(c.Dir, 4000) }

func decodeCompletion(value []byte) (*completion, error) {
	c := &completion{}
	if err := json.Unmarshal(value, c); err != nil {
		return nil, fmt.Errorf("decode entry: %w", err)
	}
	if c.Version != entryVersion || c.Dir != "" && !absolute(c.Dir) || c.DueMs <= 0 {
		return nil, fmt.Errorf("decode entry: malformed, or of a newer Spillway: %q", value)
	}
	return c, nil
}

// completer marks directories. It has one goroutine.
type completer struct {
	v    *serving
	wg   sync.WaitGroup
	wake chan struct{} // has room for one: time went on, or the file system works again

	unmarked int       // directories since said that get no mark; of the commit that runs
	said     time.Time // when the log said so last

	mu         sync.Mutex
	dirs       map[string]*completion // by key; the entries that the session has
	completeMs int64
}

func newCompleter(v *serving) *completer {
	return &completer{v: v, wake: make(chan struct{}, 1), dirs: make(map[string]*completion)}
}

// adopt takes over an entry of a dead session.
func (m *completer) adopt(value []byte) error {
	c, err := decodeCompletion(value)
	if err == nil {
		m.add(c)
	}
	return err
}

func (m *completer) add(c *completion) {
	c.backoff = backoff.Backoff{Initial: 500 * time.Millisecond, Max: time.Minute}
	m.mu.Lock()
	m.dirs[c.key()] = c
	m.mu.Unlock()
	m.hurry()
}

// begin puts the entry for the directory of a file that is begun, and returns it; nil when it
// needs none, or is there.
func (m *completer) begin(ack *delivery.Ack, f *file) (*completion, error) {
	c := &completion{Version: entryVersion, Dir: f.bucket.dir, DueMs: f.entry.DueMs}
	m.mu.Lock()
	_, there := m.dirs[c.key()]
	n := len(m.dirs)
	m.mu.Unlock()
	if there || c.DueMs == 0 || !m.takes(c, n) {
		return nil, nil
	}
	value, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode entry of directory %s: %w", c.Dir, err)
	}
	ack.State = append(ack.State, delivery.StateChange{Key: c.key(), Value: value})
	return c, nil
}

// takes says whether a directory may wait for its mark beside n others. Where it may not, the log
// says so.
func (m *completer) takes(c *completion, n int) bool {
	most, now := maxCompletions, time.Now()
	if c.DueMs > now.Add(farAhead).UnixMilli() {
		most /= 2
	}
	if n < most {
		return true
	}
	if m.unmarked++; now.Sub(m.said) > unmarkedQuiet {
		m.v.sink.log.Warn("too many directories wait for the end of their time: directories get no _SUCCESS; when their times are far ahead, those of the records are wrong",
			"directories", m.unmarked, "path", c.Dir, "ends", time.UnixMilli(c.DueMs).UTC().Format(time.RFC3339), "waiting", n)
		m.unmarked, m.said = 0, now
	}
	return false
}

// passed tells how far the time of records is complete.
func (m *completer) passed(completeMs int64) {
	m.mu.Lock()
	m.completeMs = completeMs
	m.mu.Unlock()
	m.hurry()
}

// retry tries all directories again now.
func (m *completer) retry() {
	m.mu.Lock()
	for _, c := range m.dirs {
		c.retryAt = time.Time{}
	}
	m.mu.Unlock()
	m.hurry()
}

func (m *completer) hurry() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// start begins to mark directories, until ctx ends.
func (m *completer) start(ctx context.Context) {
	m.wg.Go(func() {
		for ctx.Err() == nil {
			due, pause := m.due(time.Now())
			if len(due) > 0 {
				if m.complete(ctx, due) == nil {
					continue
				}
				pause = time.Minute // the session ends, and ctx with it
			}
			timer := time.NewTimer(pause)
			select {
			case <-m.wake:
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
		}
	})
}

func (m *completer) wait() { m.wg.Wait() }

// due returns some of the directories that can be marked, and when there are none for how long.
func (m *completer) due(now time.Time) (due []*completion, pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pause = time.Hour
	for _, c := range m.dirs {
		switch wait := c.retryAt.Sub(now); {
		case c.DueMs > m.completeMs:
		case wait > 0:
			pause = min(pause, wait)
		default:
			due = append(due, c)
		}
	}
	slices.SortFunc(due, func(a, b *completion) int {
		return cmp.Or(cmp.Compare(a.DueMs, b.DueMs), strings.Compare(a.Dir, b.Dir))
	})
	return due[:min(len(due), successBatch)], pause
}

// complete marks directories, and deletes the entries of those that are. Those that cannot be
// marked now are tried again, less and less often. An error says that the session has ended.
func (m *completer) complete(ctx context.Context, due []*completion) error {
	ack := &delivery.Ack{}
	for _, c := range due {
		if err := m.v.alive(ctx); err != nil {
			return err
		}
		if err := m.mark(ctx, c.Dir); err != nil {
			m.postpone(ctx, c, err)
			continue
		}
		ack.State = append(ack.State, delivery.StateChange{Key: c.key()})
	}
	if err := m.v.ack(ctx, ack); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range ack.State {
		delete(m.dirs, s.Key)
	}
	return nil
}

// mark gives a directory its _SUCCESS, unless it has one.
func (m *completer) mark(ctx context.Context, dir string) error {
	fs := m.v.sink.fs
	switch _, err := fs.Size(ctx, dir+"/"+incompleteName); {
	case err == nil:
		return fmt.Errorf("it has an %s: a file of it cannot be finished (ListOpenFiles names it); when that is settled, and it is still there, remove it", incompleteName)
	case !errors.Is(err, ErrNotExist):
		return err
	}
	switch err := m.v.sink.touch(ctx, dir+"/"+successName); {
	case err == nil:
		m.v.sink.log.Info("a directory is complete", "path", dir)
	case !errors.Is(err, ErrExist): // else it is another's, or was written before a crash
		return err
	}
	return nil
}

// postpone tries a directory again later.
func (m *completer) postpone(ctx context.Context, c *completion, err error) {
	if !c.failing && m.v.alive(ctx) == nil {
		m.v.sink.log.Warn("cannot mark a complete directory; retrying", "path", c.Dir, "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.failing, c.retryAt = true, time.Now().Add(c.backoff.Next())
}

// touch makes an empty file.
func (s *Sink) touch(ctx context.Context, path string) error {
	f, err := s.fs.Create(ctx, path, func() {})
	if err != nil {
		return err
	}
	defer f.Abandon()
	return f.Close(ctx)
}

// timeOver is when the time of the directory is over that records of the time ms go to, in ms
// since 1970.
func (l *layout) timeOver(ms int64) int64 {
	at := time.UnixMilli(ms).In(l.zone)
	dir := l.dirTime(at)
	end := after(at, l.unit)
	for l.dirTime(end) == dir {
		end = after(end, l.unit)
	}
	// When the clocks go back, the same names may come once more.
	last := end.Add(-time.Millisecond)
	_, offset := last.Zone()
	if _, change := last.ZoneBounds(); !change.IsZero() {
		_, then := change.Zone()
		again := last.Add(time.Duration(offset-then) * time.Second)
		if !again.Before(change) && l.dirTime(again) == dir {
			return l.timeOver(again.UnixMilli())
		}
	}
	return end.UnixMilli()
}

// dirTime is what the escapes of times yield in the directory.
func (l *layout) dirTime(at time.Time) string {
	rounded := l.rounding.down(at)
	var b []byte
	for _, p := range l.dir {
		if p.kind == timeEscape {
			b = append(append(b, formatTime(p.letter, rounded)...), 0)
		}
	}
	return string(b)
}

// after is the beginning of the next unit.
func after(at time.Time, unit config.TimeUnit) time.Time {
	year, month, day := at.Date()
	switch unit {
	case config.Year:
		return time.Date(year+1, 1, 1, 0, 0, 0, 0, at.Location())
	case config.Month:
		return time.Date(year, month+1, 1, 0, 0, 0, 0, at.Location())
	case config.Day:
		return time.Date(year, month, day+1, 0, 0, 0, 0, at.Location())
	}
	// By duration, as the clocks may be changed meanwhile.
	step := time.Second
	into := time.Duration(at.Nanosecond())
	switch unit {
	case config.Hour:
		step = time.Hour
		into += time.Duration(at.Minute())*time.Minute + time.Duration(at.Second())*time.Second
	case config.Minute:
		step = time.Minute
		into += time.Duration(at.Second()) * time.Second
	}
	return at.Add(step - into)
}
