package filesink

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// stubFS answers everything, and takes no second file.
type stubFS struct {
	FS
	files int
}

func (s *stubFS) Create(context.Context, string, func()) (File, error) {
	if s.files++; s.files > 1 {
		return nil, ErrExist
	}
	return stubFile{}, nil
}
func (*stubFS) Take(context.Context, Taking) error           { return ErrWait }
func (*stubFS) Rename(context.Context, string, string) error { return nil }
func (*stubFS) Remove(context.Context, string) error         { return nil }

type stubFile struct{ File }

func (stubFile) Commit(context.Context, []byte) error { return nil }
func (stubFile) Close(context.Context) error          { return nil }

// TestCallsAreTimed: each call of the file system is counted once, those that fail, too.
func TestCallsAreTimed(t *testing.T) {
	fs, ctx := newTimedFS(&stubFS{}), t.Context()
	f, err := fs.Create(ctx, "/f", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Create(ctx, "/f", nil); !errors.Is(err, ErrExist) {
		t.Errorf("a second file: %v", err)
	}
	if err := errors.Join(f.Commit(ctx, nil), f.Commit(ctx, nil), f.Close(ctx), fs.Rename(ctx, "/f", "/g"), fs.Remove(ctx, "/g")); err != nil {
		t.Error(err)
	}
	if err := fs.Take(ctx, Taking{}); !errors.Is(err, ErrWait) {
		t.Errorf("take: %v", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(fs.calls)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]uint64)
	for _, m := range families[0].Metric {
		got[m.Label[0].GetValue()] = m.Histogram.GetSampleCount()
	}
	if want := map[string]uint64{"create": 2, "commit": 2, "close": 1, "rename": 1, "remove": 1, "take": 1}; !maps.Equal(got, want) {
		t.Errorf("calls are %v, want %v", got, want)
	}
}
