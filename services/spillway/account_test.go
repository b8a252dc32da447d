package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// newTestGenerator says it has written that many records to a topic.
func newTestGenerator(written map[string]int64) *generator {
	g := &generator{written: make(map[string]*atomic.Int64)}
	for topic, n := range written {
		g.written[topic] = new(atomic.Int64)
		g.written[topic].Store(n)
	}
	return g
}

func TestTally(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"orders/2026/a.log": "1 x\n2 x\n2 x\n", "orders/b.log": "2 x\n4 x\n", "web/c.log": "1 x\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tally := newTally(newTestGenerator(map[string]int64{"orders": 4, "web": 1}))
	if err := tally.readFiles(root); err != nil {
		t.Fatal(err)
	}
	if tally.distinct != 4 || tally.doubled != 2 || tally.err("files") != nil {
		t.Errorf("distinct %d, doubled %d, %v; want 4, 2", tally.distinct, tally.doubled, tally.err("files"))
	}

	for _, value := range []string{"5 beyond the last", "0 x", "-1 x", "x", ""} {
		tally.add("orders", []byte(value))
	}
	tally.add("nobody's", []byte("1 x"))
	err := tally.err("files")
	if err == nil || !strings.HasPrefix(err.Error(), `files: values that were never written: orders: "5 beyond the last"; `) {
		t.Errorf("values that nobody wrote: %v", err)
	}
	if tally.distinct != 4 || tally.doubled != 2 {
		t.Errorf("they count: distinct %d, doubled %d", tally.distinct, tally.doubled)
	}
}

func TestAccount(t *testing.T) {
	a := &account{In: 10, Destinations: []balance{{"files", 10, 0, 0, 0}, {"test Kafka", 9, 0, 3, 1}}}
	if err := a.verdict(); err != nil {
		t.Errorf("what Kafka may double is held against it: %v", err)
	}
	var out bytes.Buffer
	if err := a.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `
   DESTINATION   IN   DELIVERED   LOST   DOUBLED   PENDING
         files   10          10      0         0         0
    test Kafka   10           9      0         3         1
`
	if got := trailingBlanks.ReplaceAllString(out.String(), ""); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}

	a.Destinations = []balance{{"files", 9, 1, 2, 0}, {"test Kafka", 8, 2, 0, 0}}
	want = "files: 1 records are lost\nfiles: 2 records are doubled\ntest Kafka: 2 records are lost"
	if err := a.verdict(); err == nil || err.Error() != want {
		t.Errorf("verdict is %v, want %s", err, want)
	}
}
