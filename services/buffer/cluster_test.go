package buffer

import (
	"log/slog"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// TestAShardAndItsStreams has a buffer with shard 1 of 3 take streams for that alone, with the
// partitions of that alone, and say what it has.
func TestAShardAndItsStreams(t *testing.T) {
	r := startShard(t, t.TempDir(), 1, func(q *config.Queue, _ *Deps) { q.Shards = 3 })
	list, err := spillwayv1.NewClusterServiceClient(r.conn).ListShards(t.Context(), &spillwayv1.ListShardsRequest{})
	if err != nil || len(list.Shards) != 1 {
		t.Fatalf("listed %v: %v", list, err)
	}
	s := list.Shards[0]
	if s.Queue != "c" || s.Number != 1 || s.Of != 3 || s.State != "open" || s.Life == "" || s.Epoch != 0 {
		t.Errorf("listed %v", s)
	}
	if _, err := spillwayv1.NewClusterServiceClient(r.conn).ListShards(t.Context(), &spillwayv1.ListShardsRequest{Queue: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("a queue that is not there: %v", err)
	}
	queues, err := spillwayv1.NewBufferAdminServiceClient(r.conn).ListQueues(t.Context(), &spillwayv1.ListQueuesRequest{})
	if err != nil || len(queues.Queues) != 1 || queues.Queues[0].Shard != 1 || queues.Queues[0].Shards != 3 {
		t.Errorf("queues are %v: %v", queues, err)
	}

	client := spillwayv1.NewBufferServiceClient(r.conn)
	for _, test := range []struct {
		name   string
		claim  *spillwayv1.ShardClaim
		reason string // of the refusal; empty: none
	}{
		{"its shard", &spillwayv1.ShardClaim{Number: 1, Of: 3}, ""},
		{"its shard, seen before", &spillwayv1.ShardClaim{Number: 1, Of: 3, Life: s.Life}, ""},
		{"its shard, with a newer owner", &spillwayv1.ShardClaim{Number: 1, Of: 3, Life: s.Life, Epoch: 1}, "NOT_OWNER"},
		{"its shard, with a newer owner of another life", &spillwayv1.ShardClaim{Number: 1, Of: 3, Life: "other", Epoch: 1}, ""},
		{"another shard", &spillwayv1.ShardClaim{Number: 2, Of: 3}, "NOT_OWNER"},
		{"a shard of fewer", &spillwayv1.ShardClaim{Number: 1, Of: 2}, "SHARDS_DIFFER"},
		{"a client before shards", nil, "SHARDS_DIFFER"},
	} {
		a, err := client.Append(t.Context())
		if err == nil {
			err = a.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Shard: test.claim}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		appended, appendErr := a.Recv()
		c, err := client.Consume(t.Context())
		if err == nil {
			err = c.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
				Subscription: "c/all", Ordering: spillwayv1.Ordering_ORDERING_NONE, Shard: test.claim}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		consumed, consumeErr := c.Recv()
		if got := rpc.Reason(appendErr); got != test.reason || test.reason == "" && appended.GetOpened().GetLife() != s.Life {
			t.Errorf("%s: append is answered %v, %v", test.name, appended, appendErr)
		}
		if got := rpc.Reason(consumeErr); got != test.reason || test.reason == "" && (consumed.GetOpened().GetLedgerId() != s.Life || consumed.GetOpened().SessionId>>48 != 1) {
			t.Errorf("%s: consume is answered %v, %v", test.name, consumed, consumeErr)
		}
	}

	a, err := client.Append(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(m *spillwayv1.AppendRequest) (*spillwayv1.AppendResponse, error) {
		if err := a.Send(m); err != nil {
			t.Fatal(err)
		}
		return a.Recv()
	}
	if _, err := send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Shard: &spillwayv1.ShardClaim{Number: 1, Of: 3}}}}); err != nil {
		t.Fatal(err)
	}
	own, foreign := int32(-1), int32(-1)
	for p := range int32(20) {
		if shards.Of("k", "t", p, 3) == 1 {
			own = p
		} else {
			foreign = p
		}
	}
	assign := func(partition int32) *spillwayv1.AppendRequest {
		return &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: &spillwayv1.SourcePartition{Cluster: "k", Topic: "t", Partition: partition}}}}
	}
	if m, err := send(assign(own)); err != nil || m.GetAssigned() == nil {
		t.Errorf("its own partition: %v, %v", m, err)
	}
	if m, err := send(assign(foreign)); rpc.Reason(err) != "NOT_OWNER" {
		t.Errorf("a partition of another shard: %v, %v", m, err)
	}
}

// TestAQueueThatOthersHave is not kept by a buffer whose shard it does not have.
func TestAQueueThatOthersHave(t *testing.T) {
	s, err := New(config.Buffer{DataDir: t.TempDir(), Shard: 2, Queues: map[string]*config.Queue{
		"two": {Shards: 2, Subscriptions: map[string]*config.Subscription{"s": {}}}, "three": {Shards: 3, Subscriptions: map[string]*config.Subscription{"s": {}}}}}, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if names := s.names(); len(names) != 1 || names[0] != "three" {
		t.Errorf("keeps %v", names)
	}
	if _, err := s.queue("two"); rpc.Reason(toStatus(err)) != "NOT_OWNER" {
		t.Errorf("%v", err)
	}
}
