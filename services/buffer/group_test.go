package buffer

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// inGroup is inKafka, with owners by a group.
func inGroup(t *testing.T) func(*config.Queue, *Deps) {
	t.Helper()
	return inGroupOf(t, 1)
}

// inGroupOf has a queue in so many shards.
func inGroupOf(t *testing.T, shards int) func(*config.Queue, *Deps) {
	t.Helper()
	const session = time.Second
	kept := inKafkaShards(t, shards, kfake.GroupMinSessionTimeout(session))
	return func(q *config.Queue, d *Deps) {
		kept(q, d)
		q.Store.Kafka.Owners, q.Store.Kafka.SessionTimeout = "group", session
		if d != nil {
			d.Dial = rpc.Dial
		}
	}
}

func (r *running) cluster() spillwayv1.ClusterServiceClient {
	return spillwayv1.NewClusterServiceClient(r.conn)
}

// shards are those that a buffer lists, with those of others when that is asked for.
func (r *running) shards(others bool) []*spillwayv1.Shard {
	r.t.Helper()
	list, err := r.cluster().ListShards(r.t.Context(), &spillwayv1.ListShardsRequest{Queue: "c", Others: others})
	if err != nil {
		r.t.Fatal(err)
	}
	return list.Shards
}

// awaitShard waits until a buffer has the shard open, with an epoch above another.
func (r *running) awaitShard(above uint64) *spillwayv1.Shard {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		all := r.shards(false)
		if len(all) == 1 && all[0].State == "open" && all[0].Epoch > above {
			return all[0]
		}
		if time.Since(began) > 20*time.Second {
			r.t.Fatalf("it has %v", all)
		}
	}
}

// drain gives to others what a buffer has. They may be out of the group for a moment on a busy
// machine.
func (r *running) drain() []*spillwayv1.Shard {
	r.t.Helper()
	for began := time.Now(); ; {
		drained, err := r.cluster().DrainBuffer(r.t.Context(), &spillwayv1.DrainBufferRequest{})
		if err == nil {
			return drained.Shards
		}
		if rpc.Reason(err) != "NO_ROOM" || time.Since(began) > 20*time.Second {
			r.t.Fatalf("drain: %v", err)
		}
	}
}

// TestAGroupGivesTheShard to one of two buffers; the other one is a spare, which gets it when the
// first one is told to give it away, and goes on where that one was. One that was fenced by
// somebody unknown is the owner again.
func TestAGroupGivesTheShard(t *testing.T) {
	change := inGroup(t)
	first := start(t, t.TempDir(), change)
	before := first.awaitShard(0)
	if before.Owner != first.service.advertise || before.Life == "" {
		t.Errorf("the first buffer lists %v", before)
	}
	second := start(t, t.TempDir(), change) // which is ready as a spare
	if all := second.shards(false); len(all) != 0 {
		t.Errorf("the spare lists %v", all)
	}
	spare := func(r *running, want float64) {
		t.Helper()
		registry := prometheus.NewRegistry()
		registry.MustRegister(&collector{r.service})
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "spillway_buffer_spare" {
				if v := f.Metric[0].Gauge.GetValue(); len(f.Metric) != 1 || v != want {
					t.Errorf("%s: %v, want %v", f.GetName(), f.Metric, want)
				}
				return
			}
		}
		t.Error("no spillway_buffer_spare")
	}
	spare(first, 0)
	spare(second, 1)
	all := second.shards(true)
	if len(all) != 1 || all[0].Owner != first.service.advertise || all[0].State != "elsewhere" {
		t.Errorf("the spare knows %v", all)
	}
	queues, err := spillwayv1.NewBufferAdminServiceClient(second.conn).ListQueues(t.Context(), &spillwayv1.ListQueuesRequest{})
	if err != nil || len(queues.Queues) != 0 {
		t.Errorf("the spare lists the queues %v, %v", queues, err)
	}
	audit, err := spillwayv1.NewBufferAdminServiceClient(second.conn).Audit(t.Context(), &spillwayv1.AuditRequest{})
	if err != nil || len(audit.Partitions) != 0 {
		t.Errorf("the spare audits %v, %v", audit, err)
	}
	refused := func(what string, err error, reason string) {
		t.Helper()
		if rpc.Reason(err) != reason {
			t.Errorf("%s: %v, want %s", what, err, reason)
		}
	}
	_, err = spillwayv1.NewBufferAdminServiceClient(second.conn).GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: "c"})
	refused("a queue at the spare", err, "NOT_OWNER")
	_, err = second.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", To: "x:1"})
	refused("a move from the spare", err, "NOT_OWNER")
	_, err = first.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", To: "nowhere:1"})
	refused("a move to nobody", err, "NO_SUCH_BUFFER")
	_, err = second.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", Number: 77, To: "x:1"})
	refused("a shard that is none", err, "NOT_OWNER")

	in, out := first.appendStream(), first.consume("c/all")
	first.appended(in, batch("t", 0, 10, "v"))
	l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId}}})
	if result := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); result.Status != nil {
		t.Fatal(result)
	}
	began := time.Now()
	if drained := first.drain(); len(drained) != 1 || drained[0].Owner != second.service.advertise {
		t.Fatalf("drained: %v", drained)
	}
	after := second.awaitShard(before.Epoch)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	spare(first, 0) // nothing is given to it any more
	spare(second, 0)
	if after.Life != before.Life {
		t.Errorf("the heir lists %v, the first one %v", after, before)
	}
	for {
		if _, err := in.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the former owner's stream ends with %v", err)
			}
			break
		}
	}
	if a := second.assign(second.appendStream(), "t"); !a.Known || a.ResumeOffset != 10 || a.SafeOffset != 10 {
		t.Errorf("the heir goes on at %v, want 10, safe 10", a)
	}
	_, err = second.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", To: first.service.advertise})
	refused("a move to one that was drained", err, "NO_ROOM")
	if all := first.shards(false); len(all) != 0 {
		t.Errorf("the drained one lists %v", all)
	}

	// Somebody writes a barrier.
	q := &config.Queue{}
	change(q, nil)
	topics := KafkaTopics("c", q, kafkaclient.Access{})
	ghost, err := kafkastore.Open(t.Context(), kafkastore.Config{Topics: topics, Log: slog.New(slog.DiscardHandler)}, queue.StoreOptions{
		Recover: func(queue.Recovered) error { return nil }, Snapshot: func() queue.Snapshot { s := queue.WholeSnapshot(""); return &s }, Damage: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer ghost.Close()
	if again := second.service.only("c"); again.isLost() {
		t.Error("it knows before it writes")
	}
	second.appended(second.appendStream(), batch("t", 10, 20, "v")) // spilled soon
	second.awaitShard(after.Epoch)
}

// TestFixedOwnersTakeNoOrders: a shard that the configuration gives is not moved.
func TestFixedOwnersTakeNoOrders(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	_, err := r.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", To: "x:1"})
	if rpc.Reason(err) != "FIXED_OWNERS" {
		t.Errorf("move: %v", err)
	}
	if _, err = r.cluster().DrainBuffer(t.Context(), &spillwayv1.DrainBufferRequest{}); rpc.Reason(err) != "FIXED_OWNERS" {
		t.Errorf("drain: %v", err)
	}
}

// TestAdvertiseLeadsElsewhere: a buffer that another one answers for takes no shard, and says why.
func TestAdvertiseLeadsElsewhere(t *testing.T) {
	change := inGroup(t)
	other := start(t, t.TempDir(), nil)
	cfg := &config.Queue{Memory: config.Bounds{Records: 10_000, Bytes: 64 << 20}, Disk: config.Bounds{Records: 1 << 40, Bytes: 1 << 40}, Lease: time.Second,
		Subscriptions: map[string]*config.Subscription{"all": {Topics: []string{"*"}}}}
	told := make(chan string, 100)
	deps := Deps{Log: slog.New(slog.DiscardHandler), OnReady: func(_ bool, reason string) { told <- reason }}
	change(cfg, &deps)
	s, err := New(config.Buffer{Advertise: other.service.advertise, Queues: map[string]*config.Queue{"c": cfg}}, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case reason := <-told:
			if !strings.Contains(reason, "buffer.advertise is "+other.service.advertise+", and another buffer answers there") {
				continue
			}
		case <-deadline:
			t.Error("nothing is said")
		}
		break
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
