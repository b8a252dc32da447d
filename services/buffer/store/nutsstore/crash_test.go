package nutsstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A child is this test binary with childVariable set to what it is to do, and its arguments.
const (
	childVariable = "SPILLWAY_STORE_CHILD"
	childDir      = "SPILLWAY_STORE_DIR"
	childAcked    = "SPILLWAY_STORE_ACKED"
)

func runChild(name string) int {
	err := fmt.Errorf("unknown child %q", name)
	switch name {
	case "append":
		err = appendForEver(os.Getenv(childDir))
	case "open backlog":
		err = tellBacklog(os.Getenv(childDir))
	case "check":
		err = checkSteps(os.Getenv(childDir), os.Getenv(childAcked))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func child(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+name, childDir+"="+dir)
	cmd.Stderr = t.Output()
	return cmd
}

const crashSegmentBytes = 256 << 10

// Steps are numbered from 1, and each is one group: the change that makes the ledger's state that
// number, and the step's batches. Everything about a step follows from its number.
func stepBatches(step uint64) []queue.Entry {
	r := rand.New(rand.NewPCG(step, 0))
	entries := make([]queue.Entry, r.IntN(4))
	for i := range entries {
		entries[i] = batch(fmt.Sprintf("%d %d", step, i), noise(step*8+uint64(i), r.IntN(20_000)))
	}
	return entries
}

// releasedAt is when the batches of a step are released: most of them soon, some much later.
func releasedAt(step uint64) uint64 {
	if step%17 == 0 {
		return step + 300
	}
	return step + 30
}

// ledger is what a queue would have recovered.
type ledger struct {
	state   uint64
	batches map[uint64][]queue.Ref // by step
	damage  []string
}

func (l *ledger) options() queue.StoreOptions {
	l.batches = make(map[uint64][]queue.Ref)
	return queue.StoreOptions{Recover: l.recover, Snapshot: func() queue.Snapshot { return whole(strconv.AppendUint(nil, l.state, 10)) },
		Damage: func(d string) { l.damage = append(l.damage, d) }}
}

func (l *ledger) recover(e queue.Recovered) error {
	words := strings.Fields(string(e.Meta))
	step, err := strconv.ParseUint(words[0], 10, 64)
	if err != nil {
		return err
	}
	switch e.Kind {
	case queue.SnapshotEntry:
		l.state = step
	case queue.ChangeEntry:
		if step != l.state+1 {
			return fmt.Errorf("change %d comes after %d", step, l.state)
		}
		l.state = step
	case queue.BatchEntry:
		if words[1] != strconv.Itoa(len(l.batches[step])) {
			return fmt.Errorf("batch %s of step %d comes after %d others", words[1], step, len(l.batches[step]))
		}
		l.batches[step] = append(l.batches[step], e.Ref)
	}
	return nil
}

// appendForEver is the child: it does one step after the other, and prints it once it is
// acknowledged.
func appendForEver(dir string) error {
	var l ledger
	s, err := open(dir, Config{SegmentBytes: crashSegmentBytes}, l.options())
	if err != nil {
		return err
	}
	for {
		step := l.state + 1
		refs, err := s.Append(append(stepBatches(step), change(strconv.FormatUint(step, 10))))
		if err != nil {
			if _, again := s.Append([]queue.Entry{change("after an error")}); again == nil {
				return fmt.Errorf("append goes on after: %w", err)
			}
			return err
		}
		l.state = step
		fmt.Println(step)
		l.batches[step] = refs[:len(refs)-1]
		for old := range l.batches {
			if releasedAt(old) <= step {
				s.Release(l.batches[old])
				delete(l.batches, old)
			}
		}
	}
}

// check opens the store and compares it with the steps that were acknowledged.
func check(t *testing.T, dir string, acked, atMost uint64) *ledger {
	t.Helper()
	var l ledger
	if err := l.check(dir, acked, atMost); err != nil {
		t.Fatal(err)
	}
	return &l
}

// checkSteps is the child that checks, and tells by its status.
func checkSteps(dir, acked string) error {
	n, err := strconv.ParseUint(acked, 10, 64)
	if err != nil {
		return err
	}
	var l ledger
	return l.check(dir, n, n+1)
}

func (l *ledger) check(dir string, acked, atMost uint64) (err error) {
	s, err := open(dir, Config{SegmentBytes: crashSegmentBytes}, l.options())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if l.state < acked || l.state > atMost {
		return fmt.Errorf("the ledger is at step %d; acknowledged was %d, begun %d; damage told: %q", l.state, acked, atMost, l.damage)
	}
	for _, d := range l.damage {
		if !strings.Contains(d, "unfinished write") {
			return fmt.Errorf("damage reported: %s", d)
		}
	}
	for step := range l.batches {
		if step > l.state {
			return fmt.Errorf("batches of step %d are there, its change is not", step)
		}
	}
	for step := uint64(1); step <= l.state; step++ {
		want, refs := stepBatches(step), l.batches[step]
		if len(refs) == 0 && releasedAt(step) <= l.state {
			continue
		}
		if len(refs) != len(want) {
			return fmt.Errorf("step %d has %d batches, want %d; the last step is %d", step, len(refs), len(want), l.state)
		}
		for i, ref := range refs {
			if p, err := s.Read(ref); err != nil || string(p) != string(want[i].Payload) {
				return fmt.Errorf("read batch %d of step %d: %v, or wrong bytes", i, step, err)
			}
		}
	}
	return nil
}

// TestKilled kills a writer at random moments: while it opens and recovers, writes, begins
// segments and removes old ones.
func TestKilled(t *testing.T) {
	const kills = 60
	dir, acked, begun := t.TempDir(), uint64(0), uint64(0)
	unfinished := 0
	for i := range kills {
		cmd := child(t, "append", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if i%3 > 0 { // else at once: most likely it is still opening the store
			for range rand.IntN(100) {
				if !lines.Scan() {
					break
				}
				acked = lastStep(t, lines.Text())
			}
		}
		time.Sleep(rand.N(20 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			acked = lastStep(t, lines.Text())
		}
		if _, err := io.Copy(io.Discard, out); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
			t.Fatalf("the child ended with %v, not by the kill", err)
		}
		begun = max(begun, acked) + 1
		if i%2 > 0 { // else the next child recovers what this one left
			l := check(t, dir, acked, begun)
			begun = l.state
			unfinished += len(l.damage)
		}
	}
	t.Logf("%d kills, %d steps acknowledged, unfinished writes told %d times", kills, acked, unfinished)
	if acked < kills {
		t.Errorf("only %d steps were acknowledged", acked)
	}
}

func lastStep(t *testing.T, line string) uint64 {
	t.Helper()
	step, err := strconv.ParseUint(line, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return step
}
