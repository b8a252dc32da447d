package buffer

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestDataDirectoryIsGone takes the directory away under a buffer that is idle, and under one
// that is not.
func TestDataDirectoryIsGone(t *testing.T) {
	for _, idle := range []bool{true, false} {
		dir := t.TempDir()
		home, away := filepath.Join(dir, "c"), filepath.Join(dir, "away")
		move := func(from, to string) func() error {
			return func() error { return os.Rename(from, to) }
		}
		loseDirectory(t, dir, idle, move(home, away), move(away, home))
	}
}

// loseDirectory takes the data directory of a buffer away, and puts it back: the queue is closed
// and stays so, nothing more is reported safe, and with the directory back it goes on with what it
// had.
func loseDirectory(t *testing.T, dir string, idle bool, takeAway, putBack func() error) {
	t.Helper()
	r := start(t, dir, nil)
	in := r.appendStream()
	r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source("t")}}})
	r.appended(in, batch("t", 0, 10, "v"))
	for safe := int64(0); safe < 10; {
		m, err := in.Recv()
		if err != nil {
			t.Fatal(err)
		}
		safe = m.GetSafe().GetOffset()
	}
	if err := takeAway(); err != nil {
		t.Fatal(err)
	}
	if !idle {
		r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: batch("t", 10, 20, "v")}})
	}
	for {
		m, err := in.Recv()
		if err != nil {
			break
		}
		if m.GetSafe().GetOffset() > 10 {
			t.Errorf("offset %d is reported safe", m.GetSafe().GetOffset())
		}
	}
	r.awaitReady(false)
	if _, err := os.Stat(filepath.Join(dir, "c")); !os.IsNotExist(err) {
		t.Errorf("a directory was made in its place: %v", err)
	}
	if err := putBack(); err != nil {
		t.Fatal(err)
	}
	r.awaitReady(true)
	in = r.appendStream()
	if a := r.appended(in, batch("t", 0, 10, "v")); a.Status.GetCode() != int32(codes.OK) || !a.Duplicate {
		t.Errorf("what was safe is not known any more: %v", a)
	}
	r.stop()
}
