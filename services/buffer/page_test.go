package buffer

import (
	"fmt"
	"iter"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestPagesOfPartitions goes through the answers that have an entry for every partition, page by
// page.
func TestPagesOfPartitions(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	var topics []string
	for i := range 7 {
		topics = append(topics, fmt.Sprint("t", i))
		r.appended(in, batch(topics[i], 0, 10, "v"))
	}
	r.appended(in, batch("odd", 0, 10, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	for _, size := range []int32{1, 3, 8, 0} {
		var queue, subscription, audit []string
		for token := ""; ; {
			m, err := admin.GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: "c", PageSize: size, PageToken: token})
			if err != nil || size > 0 && len(m.Partitions) > int(size) {
				t.Fatalf("%v, %v", m, err)
			}
			for _, p := range m.Partitions {
				queue = append(queue, p.Source.Topic)
			}
			if token = m.NextPageToken; token == "" {
				break
			}
		}
		for token := ""; ; {
			m, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all", PageSize: size, PageToken: token})
			if err != nil || m.Subscription.PendingRecords != 80 || size > 0 && len(m.Partitions) > int(size) {
				t.Fatalf("%v, %v", m, err)
			}
			for _, p := range m.Partitions {
				subscription = append(subscription, p.Source.Topic)
			}
			if token = m.NextPageToken; token == "" {
				break
			}
		}
		for token := ""; ; {
			m, err := admin.Audit(t.Context(), &spillwayv1.AuditRequest{PageSize: size, PageToken: token})
			if err != nil || size > 0 && len(m.Partitions) > int(size) {
				t.Fatalf("%v, %v", m, err)
			}
			for _, p := range m.Partitions {
				audit = append(audit, p.Subscription+" "+p.Source.Topic)
			}
			if token = m.NextPageToken; token == "" {
				break
			}
		}
		want := append([]string{"odd"}, topics...)
		if diff := cmp.Diff(want, queue); diff != "" {
			t.Errorf("queue, %d a page (-want +got):\n%s", size, diff)
		}
		if diff := cmp.Diff(want, subscription); diff != "" {
			t.Errorf("subscription, %d a page (-want +got):\n%s", size, diff)
		}
		var accounts []string
		for _, topic := range want {
			accounts = append(accounts, "c/all "+topic)
		}
		if diff := cmp.Diff(append(accounts, "c/odd odd"), audit); diff != "" {
			t.Errorf("audit, %d a page (-want +got):\n%s", size, diff)
		}
	}
	for _, wrong := range []*spillwayv1.AuditRequest{{PageSize: -1}, {PageToken: "no token of ours"}} {
		if _, err := admin.Audit(t.Context(), wrong); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, want INVALID_ARGUMENT", wrong, err)
		}
	}
}

// TestPartOfAnAuditIsNone: a client that does not ask for pages is not given the first one of
// several, which would look complete to it.
func TestPartOfAnAuditIsNone(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	for i := range partitionsPerPage + 1 {
		r.appended(in, batch(fmt.Sprint("t", i), 0, 1, "v"))
	}
	r.appended(in, batch("odd", 0, 1, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	if m, err := admin.Audit(t.Context(), &spillwayv1.AuditRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "set page_size") {
		t.Errorf("%d partitions, %v", len(m.GetPartitions()), err)
	}
	if m, err := admin.Audit(t.Context(), &spillwayv1.AuditRequest{Name: "c/odd"}); err != nil || len(m.Partitions) != 1 {
		t.Errorf("of one partition: %v, %v", m, err)
	}
	m, err := admin.Audit(t.Context(), &spillwayv1.AuditRequest{PageSize: partitionsPerPage})
	if err != nil || len(m.Partitions) != partitionsPerPage || m.NextPageToken == "" {
		t.Fatalf("a page: %d partitions, %v", len(m.GetPartitions()), err)
	}
	rest, err := admin.Audit(t.Context(), &spillwayv1.AuditRequest{PageToken: m.NextPageToken})
	if err != nil || len(rest.Partitions) != 3 || rest.NextPageToken != "" {
		t.Errorf("the rest: %v, %v", rest, err)
	}
}

// TestPagesAreBoundedInBytes: a page ends where it gets large, however many items were asked for.
func TestPagesAreBoundedInBytes(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	var items iter.Seq[int32] = func(yield func(int32) bool) {
		for i := int32(0); yield(i); i++ {
		}
	}
	message := func(i int32) *spillwayv1.SourcePartition {
		return &spillwayv1.SourcePartition{Topic: long, Partition: i}
	}
	taken, token, err := page(items, 1<<30, message, func(i int32) position { return position{Subscription: fmt.Sprint(i)} })
	if err != nil || len(taken) != 15 {
		t.Fatalf("%d items of 200 KiB in a page, %v", len(taken), err)
	}
	if at, err := parseToken(token); err != nil || at.Subscription != "14" {
		t.Fatalf("the next page begins behind %+v, %v", at, err)
	}
}
