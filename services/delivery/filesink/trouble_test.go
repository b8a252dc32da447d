package filesink

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestOutagesDenyNoDirectory: a file system that was away for long does not make a directory look
// as if it were refused, so that its records would be dead letters. One that fails while others
// take files does.
func TestOutagesDenyNoDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &trouble{log: slog.New(slog.DiscardHandler)}
		away := errors.New("away")
		try := func(times int, between func()) (err error) {
			for range times {
				if err = tr.refused("/bad", away); errors.Is(err, ErrDenied) {
					return err
				}
				time.Sleep(5 * time.Second)
				between()
			}
			return nil
		}
		good := func() { tr.allowed("/good") }
		for range 3 { // three outages
			good()
			if err := try(200, func() {}); err != nil {
				t.Fatalf("while nothing takes files: %v", err)
			}
			good()
			if err := try(2, good); err != nil {
				t.Fatalf("just after the file system came back: %v", err)
			}
			tr.allowed("/bad")
		}
		began := time.Now()
		if err := try(100, good); err == nil {
			t.Error("a directory that fails for long while another takes files is not denied")
		}
		if took := time.Since(began); took < suspectAfter/2 || took > 2*suspectAfter {
			t.Errorf("it is denied after %s", took)
		}
	})
}
