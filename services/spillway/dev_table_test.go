package main

import (
	"bytes"
	"testing"
	"time"
)

var tableSamples = [2]sample{
	{at: time.Unix(100, 0), in: 1000, files: progress{delivered: 900}, test: progress{delivered: 1000}},
	{at: time.Unix(102, 0), elapsed: 12 * time.Second, down: true, in: 5000, memory: 512 << 10, limit: 64 << 20, disk: 21 << 20, spilled: 3000,
		files: progress{delivered: 4900, backlog: 100, oldest: 512 * time.Millisecond}, test: progress{delivered: 1000, backlog: 4000, oldest: 2 * time.Second}},
}

func TestLine(t *testing.T) {
	want := "  12s  in 2000/s  window 0.5 MiB  disk 21.0 MiB, 3000 spilled  files 2000/s backlog 100  test Kafka (DOWN) 0/s backlog 4000"
	if got := tableSamples[1].line(&tableSamples[0]); got != want {
		t.Errorf("line is\n%s\nwant\n%s", got, want)
	}
}

func TestTable(t *testing.T) {
	want := `12s   in: 5000 records, 2000/s   window: 0.5 MiB of 64.0 MiB   disk: 21.0 MiB, 3000 records spilled   test Kafka: DOWN

   SUBSCRIPTION   DELIVERED   PER SECOND   BACKLOG   OLDEST
     demo/files        4900         2000       100    500ms
      demo/test        1000            0      4000       2s
`
	got := tableSamples[1].table(&tableSamples[0])
	if trimmed := trailingBlanks.ReplaceAllString(got, ""); trimmed != want {
		t.Errorf("table is\n%s\nwant\n%s", trimmed, want)
	}

	var out bytes.Buffer
	d := &dev{out: &out}
	lines := d.redraw("a\nb\n", 0)
	if d.redraw("c\nd\n", lines); out.String() != "\x1b[Ka\n\x1b[Kb\n\x1b[2A\x1b[Kc\n\x1b[Kd\n" {
		t.Errorf("drawn: %q", out.String())
	}
}
