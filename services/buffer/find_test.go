package buffer

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestSeekByTimeOfGoneTopics: one topic that Kafka does not have any more holds up no seek of the
// others, and what the ingest cannot find out is said at once.
func TestSeekByTimeOfGoneTopics(t *testing.T) {
	var log lines
	r := start(t, t.TempDir(), func(_ *config.Queue, deps *Deps) { deps.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	r.appended(in, batch("gone", 20, 30, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	ctx := t.Context()
	answers := map[string]*spillwayv1.FoundOffset{"t": {Offset: 4}, "gone": {Gone: true, Error: "no such topic"}}
	var mu sync.Mutex
	go func() {
		for {
			m, err := in.Recv()
			if err != nil {
				return
			}
			f := m.GetFindOffset()
			if f == nil {
				continue
			}
			mu.Lock()
			answer := answers[f.Source.Topic]
			mu.Unlock()
			_ = in.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_FoundOffset{
				FoundOffset: &spillwayv1.FoundOffset{Id: f.Id, Offset: answer.Offset, Gone: answer.Gone, Error: answer.Error}}})
		}
	}()
	seek := &spillwayv1.SeekSubscriptionRequest{Name: "c/all", To: &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: timestamppb.New(time.UnixMilli(1_700_000_000_000))}}}
	if _, err := admin.SeekSubscription(ctx, seek); err != nil {
		t.Fatal(err)
	}
	s, err := admin.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/all"})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Partitions {
		if want := map[string]int64{"t": 4, "gone": 20}[p.Source.Topic]; p.SettledOffset != want {
			t.Errorf("%s is settled up to %d, want %d", p.Source.Topic, p.SettledOffset, want)
		}
	}
	if line := log.await(t, "level=WARN", "gone/0"); strings.Contains(line, "t/0") {
		t.Errorf("a topic counts as gone that is not: %s", line)
	}
	mu.Lock()
	answers["t"] = &spillwayv1.FoundOffset{Error: "the broker is on fire"}
	mu.Unlock()
	if _, err := admin.SeekSubscription(ctx, seek); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "t/0") || !strings.Contains(err.Error(), "on fire") {
		t.Errorf("%v, want the reason", err)
	}
}
