package buffer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

const severalShards, severalPartitions = 4, 12

// awaitShards waits until a buffer has so many shards, all open.
func (r *running) awaitShards(n int) []*spillwayv1.Shard {
	r.t.Helper()
	var all []*spillwayv1.Shard
	eventually(r.t, fmt.Sprint(n, " shards are open"), func() bool {
		all = r.shards(false)
		return len(all) == n && !slices.ContainsFunc(all, func(s *spillwayv1.Shard) bool { return s.State != "open" })
	})
	return all
}

func (r *running) admin() spillwayv1.BufferAdminServiceClient {
	return spillwayv1.NewBufferAdminServiceClient(r.conn)
}

// appendTo opens a stream to a shard.
func (r *running) appendTo(shard int) spillwayv1.BufferService_AppendClient {
	r.t.Helper()
	s, err := spillwayv1.NewBufferServiceClient(r.conn).Append(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.send(s, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Client: "test",
		Shard: &spillwayv1.ShardClaim{Number: int32(shard), Of: severalShards}}}})
	if m, err := s.Recv(); err != nil || m.GetOpened() == nil {
		r.t.Fatalf("open: %v, %v", m, err)
	}
	return s
}

// consumeFrom opens a session with a shard.
func (r *running) consumeFrom(sub string, shard int) spillwayv1.BufferService_ConsumeClient {
	r.t.Helper()
	s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(r.t.Context())
	if err == nil {
		err = errors.Join(s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: sub, Consumer: "test",
			Ordering: spillwayv1.Ordering_ORDERING_NONE, Shard: &spillwayv1.ShardClaim{Number: int32(shard), Of: severalShards}}}}),
			s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1 << 20}}}))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || m.GetOpened().GetSessionId()>>48 != uint64(shard) {
		r.t.Fatalf("open: %v, %v", m, err)
	}
	return s
}

// fillShards appends ten records to each partition, over the streams of their shards.
func (r *running) fillShards(first int64) {
	r.t.Helper()
	for shard := range severalShards {
		in := r.appendTo(shard)
		for p := range int32(severalPartitions) {
			if shards.Of("k", "t", p, severalShards) != shard {
				continue
			}
			b := batch("t", first, first+10, "v")
			b.Source.Partition = p
			if a := r.appended(in, b); a.Status != nil {
				r.t.Fatalf("partition %d at shard %d: %v", p, shard, a)
			}
		}
	}
}

// TestSeveralShardsAtABuffer: the only buffer of the group has all shards. Streams are each for
// one of them; what is asked of the queue is of all together, in pages, too. When others get a
// shard, what was counted stays.
func TestSeveralShardsAtABuffer(t *testing.T) {
	change := inGroupOf(t, severalShards)
	registry := prometheus.NewRegistry()
	first := start(t, t.TempDir(), func(q *config.Queue, d *Deps) {
		change(q, d)
		d.Registerer = registry
	})
	first.awaitShards(severalShards)
	first.fillShards(0)
	const records = 10 * severalPartitions
	a := first.admin()

	queues, err := a.ListQueues(t.Context(), &spillwayv1.ListQueuesRequest{})
	if err != nil || len(queues.Queues) != 1 {
		t.Fatalf("queues: %v, %v", queues, err)
	}
	q := queues.Queues[0]
	if q.State != "open" || q.AppendedRecords != records || q.PendingRecords != records || q.MemoryBytesLimit != 64<<20 || q.MemoryRecordsLimit != 10_000 ||
		q.Shard != 0 || q.Shards != severalShards || len(q.ShardsHere) != severalShards || len(q.Subscriptions) != 2 || q.DiskRecordsLimit != severalShards<<40 {
		t.Errorf("the queue is %v", q)
	}
	for i, s := range q.ShardsHere {
		if int(s.Number) != i || s.State != "open" || s.MemoryBytesLimit != 64<<20/severalShards {
			t.Errorf("shard %d is %v", i, s)
		}
	}
	var partitions []int32
	for token, pages := "", 0; pages == 0 || token != ""; pages++ {
		r, err := a.GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: "c", PageSize: 3, PageToken: token})
		if err != nil || pages > severalPartitions {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, p := range r.Partitions {
			partitions = append(partitions, p.Source.Partition)
		}
		token = r.NextPageToken
	}
	audited := 0
	for token, pages := "", 0; pages == 0 || token != ""; pages++ {
		r, err := a.Audit(t.Context(), &spillwayv1.AuditRequest{Name: "c/all", PageSize: 5, PageToken: token})
		if err != nil || pages > severalPartitions {
			t.Fatalf("page %d: %v", pages, err)
		}
		audited += len(r.Partitions)
		token = r.NextPageToken
	}
	if slices.Sort(partitions); len(slices.Compact(partitions)) != severalPartitions || audited != severalPartitions {
		t.Errorf("the partitions are %v, and %d are audited; want %d", partitions, audited, severalPartitions)
	}
	sub := func(name string) *spillwayv1.Subscription {
		t.Helper()
		r, err := a.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return r.Subscription
	}
	if s := sub("c/all"); s.PendingRecords != records {
		t.Errorf("the subscription is %v", s)
	}

	if _, err := a.PauseSubscription(t.Context(), &spillwayv1.PauseSubscriptionRequest{Name: "c/all"}); err != nil || !sub("c/all").Paused {
		t.Errorf("pause: %v", err)
	}
	if _, err := a.ResumeSubscription(t.Context(), &spillwayv1.ResumeSubscriptionRequest{Name: "c/all"}); err != nil || sub("c/all").Paused {
		t.Errorf("resume: %v", err)
	}
	for _, o := range first.service.queues["c"].open()[:2] { // as after an attempt that failed on its way
		if err := o.Subscribe(t.Context(), queue.SubscriptionConfig{Name: "new", Topics: []string{"*"}}, queue.Earliest, nil); err != nil {
			t.Fatal(err)
		}
	}
	create := &spillwayv1.CreateSubscriptionRequest{Name: "c/new"}
	if _, err := a.CreateSubscription(t.Context(), create); err != nil || sub("c/new").PendingRecords+sub("c/new").DeferredOffsets != records {
		t.Errorf("create: %v, %v", err, sub("c/new"))
	}
	if _, err := a.CreateSubscription(t.Context(), create); rpc.Reason(err) != "SUBSCRIPTION_EXISTS" {
		t.Errorf("create again: %v", err)
	}
	if _, err := a.DeleteSubscription(t.Context(), &spillwayv1.DeleteSubscriptionRequest{Name: "c/new"}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := a.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/new"}); rpc.Reason(err) != "SUBSCRIPTION_NOT_FOUND" {
		t.Errorf("a subscription that is gone: %v", err)
	}
	peeked, err := a.PeekRecords(t.Context(), &spillwayv1.PeekRecordsRequest{Subscription: "c/all", Limit: 1000})
	if err != nil || len(peeked.Records) != records {
		t.Errorf("%d records are shown, %v", len(peeked.GetRecords()), err)
	}
	for p := range int32(severalPartitions) {
		peeked, err := a.PeekRecords(t.Context(), &spillwayv1.PeekRecordsRequest{Subscription: "c/all", Source: &spillwayv1.SourcePartition{Cluster: "k", Topic: "t", Partition: p}, FromOffset: 9})
		if err != nil || len(peeked.Records) != 1 {
			t.Errorf("of partition %d: %v, %v", p, peeked, err)
		}
	}
	updated, err := a.UpdateQueue(t.Context(), &spillwayv1.UpdateQueueRequest{Name: "c", DiskBytes: new(int64(1) << 39)})
	if err != nil || updated.Queue.DiskBytesLimit != severalShards<<39 || updated.Queue.ConfiguredDiskBytes != severalShards<<40 {
		t.Errorf("update: %v, %v", updated, err)
	}

	delivered := int64(0)
	for shard := range severalShards {
		out := first.consumeFrom("c/all", shard)
		l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
		sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId}}})
		delivered += int64(l.Batch.RecordCount)
		for acked := false; !acked; { // between other leases
			m, err := out.Recv()
			if err != nil || m.GetAckResult().GetStatus() != nil {
				t.Fatalf("ack: %v, %v", m, err)
			}
			acked = m.GetAckResult() != nil
		}
	}
	if s := sub("c/all"); s.DeliveredRecords != delivered || s.Sessions != severalShards {
		t.Errorf("%d records are delivered: %v", delivered, s)
	}
	sessions, err := a.ListSessions(t.Context(), &spillwayv1.ListSessionsRequest{})
	if err != nil || len(sessions.Sessions) != severalShards {
		t.Errorf("sessions: %v, %v", sessions, err)
	}
	for _, claim := range []*spillwayv1.ShardClaim{nil, {Number: 1, Of: severalShards + 1}} {
		in, err := spillwayv1.NewBufferServiceClient(first.conn).Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Shard: claim}}})
		if m, err := in.Recv(); rpc.Reason(err) != "SHARDS_DIFFER" {
			t.Errorf("a stream that claims %v: %v, %v", claim, m, err)
		}
	}

	second := start(t, t.TempDir(), change)
	value := func(name string) float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "spillway_buffer_"+name && len(f.Metric) == 1 {
				return f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
			}
		}
		t.Errorf("there is no series, or several, %s", name)
		return 0
	}
	if n := value("appended_records_total"); n != records {
		t.Errorf("%v records are counted", n)
	}
	eventually(t, "the second buffer is one of the group", func() bool {
		_, err := first.cluster().MoveShard(t.Context(), &spillwayv1.MoveShardRequest{Queue: "c", Number: 2, To: second.service.advertise})
		return err == nil
	})
	second.awaitShards(1)
	first.awaitShards(severalShards - 1)
	if n := value("appended_records_total"); n != records {
		t.Errorf("%v records are counted when a shard is elsewhere", n)
	}
	if n := value("queue_open"); n != 1 {
		t.Errorf("queue_open is %v", n)
	}
	for r, want := range map[*running]int64{first: 64 << 20 / (severalShards - 1), second: 64 << 20} {
		for _, o := range r.service.queues["c"].open() {
			if got := o.config().MemoryBytes; got != want {
				t.Errorf("shard %d has %d bytes, want %d", o.number, got, want)
			}
		}
	}
	in, err := spillwayv1.NewBufferServiceClient(first.conn).Append(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Shard: &spillwayv1.ShardClaim{Number: 2, Of: severalShards}}}})
	if m, err := in.Recv(); rpc.Reason(err) != "NOT_OWNER" {
		t.Errorf("a stream to the former owner: %v, %v", m, err)
	}
	others := first.shards(true)
	if len(others) != severalShards || others[2].State != "elsewhere" || others[2].Owner != second.service.advertise {
		t.Errorf("the first buffer knows %v", others)
	}
	if drained := first.drain(); len(drained) != severalShards-1 {
		t.Fatalf("drained: %v", drained)
	}
	second.awaitShards(severalShards)
	second.fillShards(10)
	if r, err := second.admin().GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all"}); err != nil || r.Subscription.PendingRecords+r.Subscription.DeferredOffsets != 2*records-delivered {
		t.Errorf("the heir has %v, %v, want %d pending", r, err, 2*records-delivered)
	}
}

// TestShardsDivideTheMemory: together they never have more than the queue's, though one has more
// in it than its part for a while.
func TestShardsDivideTheMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &managedQueue{name: "c", shards: make(map[int]*shard), cfg: queue.Config{MemoryRecords: 1000, MemoryBytes: 1 << 20, FreeBatches: 900, MaxLeases: 90}}
		open := func(number int) (*shard, *queue.Queue) {
			h := m.add(number, nil)
			cfg := h.config()
			cfg.DiskRecords, cfg.DiskBytes, cfg.SpillAfter, cfg.Subscriptions = 1<<40, 1<<40, time.Hour, []queue.SubscriptionConfig{{Name: "s", Topics: []string{"*"}, Required: true}}
			q, err := queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) { return memstore.New().Reopen(o) })
			if err != nil {
				t.Fatal(err)
			}
			m.mu.Lock()
			h.running, h.current = q, q
			m.divideLocked()
			m.mu.Unlock()
			return h, q
		}
		sum := func() (bytes int64) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, h := range m.shards {
				limit := h.memory.Bytes
				if s := h.running.Stats(); s.MemoryBytes > limit {
					limit = s.MemoryBytes
				}
				bytes += limit
			}
			return bytes
		}
		one, q := open(0)
		if one.memory != m.cfg.Memory() {
			t.Errorf("the only shard has %+v", one.memory)
		}
		const held = 800 << 10
		if _, err := q.Append(t.Context(), queue.Batch{Partition: queue.Partition{Topic: "t"}, Range: queue.Range{First: 0, Next: 1}, Records: 1, Payload: make([]byte, held)}, 0); err != nil {
			t.Fatal(err)
		}
		two, _ := open(1)
		if n := sum(); n > 1<<20 || two.memory.Bytes != 1<<20-held {
			t.Errorf("the second shard has %d bytes while the first has %d in memory: %d in all", two.memory.Bytes, held, n)
		}
		three, _ := open(2)
		if n := sum(); n > 1<<20 || three.memory.Bytes != (1<<20-held)/2 {
			t.Errorf("the third shard has %d bytes: %d in all", three.memory.Bytes, n)
		}
		m.mu.Lock()
		one.running = nil
		m.mu.Unlock()
		m.remove(one)
		time.Sleep(2 * divideEvery)
		if n := sum(); n != 1<<20 || two.memory.Bytes != 1<<19 {
			t.Errorf("the second shard has %d bytes when the first is gone: %d in all", two.memory.Bytes, n)
		}
	})
}
