package backoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestEachCauseIsLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	trouble := NewTrouble(slog.New(slog.NewTextHandler(&log, nil)), "no way to Kafka", "Kafka can be reached again")
	lines := func(want int) {
		t.Helper()
		if got := strings.Count(log.String(), "\n"); got != want {
			t.Errorf("%d lines, want %d:\n%s", got, want, log.String())
		}
		log.Reset()
	}
	refused := errors.New("wrong password")
	for i := range 20 {
		trouble.Note(fmt.Errorf("fetch from %d: %w", i, io.EOF))
		if i > 0 {
			trouble.Note(fmt.Errorf("log in (attempt %d): %w", i, errors.Join(refused, io.EOF)))
		}
	}
	lines(2)
	trouble.Over()
	if got := log.String(); !strings.Contains(got, `level=INFO msg="recovered: Kafka can be reached again" lasted=`) || !strings.Contains(got, " failures=39") {
		t.Error(got)
	}
	lines(1)
	trouble.Over() // nothing is
	lines(0)
	trouble.Note(io.EOF)
	lines(1)
	trouble.GivenUp()
	if got := log.String(); strings.Contains(got, "recovered") || !strings.Contains(got, "no longer tried here") || trouble.Err() != nil {
		t.Error(got)
	}
	lines(1)
	trouble.Note(fmt.Errorf("fetch: %w", io.EOF))
	lines(1)
	for i := range 3 {
		trouble.Note(fmt.Errorf("append: %w", status.Errorf(codes.ResourceExhausted, "%d bytes", i)))
	}
	lines(1)
	for i := range 100 {
		trouble.Note(fmt.Errorf("odd %d", i))
	}
	lines(maxCauses - 2)
}
