package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// TestSubscriptionRetries: a subscription whose delivery fails is not called working, and its last
// error stands below the table, of several buffers the one of the longest trouble.
func TestSubscriptionRetries(t *testing.T) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	failing := func(trouble string, ago time.Duration) *spillwayv1.Subscription {
		s := &spillwayv1.Subscription{Name: "q/s", Sessions: 1, PendingRecords: 10}
		if trouble != "" {
			s.Trouble, s.TroubleSince = trouble, timestamppb.New(at.Add(-ago))
		}
		return s
	}
	sum := shards.AddSubscription(failing("", 0), failing("connection \x1brefused", time.Minute))
	sum = shards.AddSubscription(sum, failing("disk full", time.Second))
	var out strings.Builder
	subscriptionTable(&out, []*spillwayv1.Subscription{sum, {Name: "q/well", Sessions: 1, PendingRecords: 1}})
	want := "q/s: a delivery has failed since " + at.Add(-time.Minute).Local().Format(time.DateTime) + `: connection \x1brefused` + "\n"
	if text := out.String(); !strings.Contains(text, "q/s\tretrying\t30") || !strings.Contains(text, "q/well\tworking") || !strings.HasSuffix(text, want) {
		t.Errorf("the table is\n%swant at its end\n%s", text, want)
	}
}
