package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// watch shows what flows, until ctx ends: on a terminal a table that is drawn again every second,
// elsewhere a line every five seconds.
func (d *dev) watch(ctx context.Context) {
	every := 5 * time.Second
	if d.live {
		every = time.Second
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var before *sample
	lines := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, err := d.sample(ctx)
		if err != nil {
			continue // the buffer is still starting
		}
		if before == nil {
			before = &sample{at: d.started}
		}
		if d.live {
			lines = d.redraw(now.table(before), lines)
		} else {
			fmt.Fprintln(d.out, now.line(before))
		}
		before = now
	}
}

// redraw writes text over the lines written before and returns how many it has.
func (d *dev) redraw(text string, lines int) int {
	var b strings.Builder
	if lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", lines)
	}
	n := 0
	for line := range strings.Lines(text) {
		b.WriteString("\x1b[K" + line)
		n++
	}
	_, _ = io.WriteString(d.out, b.String()) // a terminal that is gone is no reason to stop
	return n
}

// sample is one look at the pipeline.
type sample struct {
	at      time.Time
	elapsed time.Duration
	down    bool // the test Kafka
	in      int64
	memory  int64
	limit   int64
	disk    int64
	spilled int64 // records, so far
	files   progress
	test    progress
}

type progress struct {
	delivered, backlog int64
	oldest             time.Duration
}

func (d *dev) sample(ctx context.Context) (*sample, error) {
	s, err := d.stats(ctx)
	if err != nil {
		return nil, err
	}
	of := func(name string) progress {
		sub := s.subs[name]
		return progress{sub.DeliveredRecords, sub.PendingRecords, sub.OldestPendingAge.AsDuration()}
	}
	now := time.Now()
	return &sample{at: now, elapsed: now.Sub(d.started), down: d.targetLis.isBroken(), in: d.in(),
		memory: s.queue.MemoryBytes, limit: s.queue.MemoryBytesLimit, disk: s.queue.DiskBytes, spilled: s.queue.SpilledRecords, files: of(devFiles), test: of(devTest)}, nil
}

func (s *sample) testKafka() string {
	if s.down {
		return "DOWN"
	}
	return "up"
}

// rate is per second since before.
func (s *sample) rate(now, then int64, before *sample) float64 {
	return float64(now-then) / max(s.at.Sub(before.at).Seconds(), 0.001)
}

func (s *sample) line(before *sample) string {
	return fmt.Sprintf("%4.0fs  in %.0f/s  window %s  disk %s, %d spilled  files %.0f/s backlog %d  test Kafka (%s) %.0f/s backlog %d",
		s.elapsed.Seconds(), s.rate(s.in, before.in, before), mib(s.memory), mib(s.disk), s.spilled,
		s.rate(s.files.delivered, before.files.delivered, before), s.files.backlog,
		s.testKafka(), s.rate(s.test.delivered, before.test.delivered, before), s.test.backlog)
}

func (s *sample) table(before *sample) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%.0fs   in: %d records, %.0f/s   window: %s of %s   disk: %s, %d records spilled   test Kafka: %s\n\n",
		s.elapsed.Seconds(), s.in, s.rate(s.in, before.in, before), mib(s.memory), mib(s.limit), mib(s.disk), s.spilled, s.testKafka())
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SUBSCRIPTION\tDELIVERED\tPER SECOND\tBACKLOG\tOLDEST\t")
	for _, r := range []struct {
		name      string
		now, then progress
	}{{devFiles, s.files, before.files}, {devTest, s.test, before.test}} {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%d\t%s\t\n", r.name, r.now.delivered, s.rate(r.now.delivered, r.then.delivered, before), r.now.backlog, r.now.oldest.Round(100*time.Millisecond))
	}
	_ = w.Flush() // to memory
	return b.String()
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
