package buffer

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/faultstore"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// TestMain: nutsdb leaks a goroutine of its own with each Open (docs/storage-format.md).
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/antlabs/timer.(*timeWheel).Run"),
		goleak.IgnoreAnyFunction("github.com/nutsdb/nutsdb.(*ttlManager).run"),
		goleak.IgnoreAnyFunction("github.com/nutsdb/nutsdb.(*DB).doWrites"))
}

// running is a buffer on loopback with the queue c: subscriptions all, and odd that wants the
// topic "odd" only.
type running struct {
	t       *testing.T
	service *Service
	conn    *grpc.ClientConn
	stop    func()
	ready   chan bool
}

func start(t *testing.T, dir string, change func(*config.Queue, *Deps)) *running {
	t.Helper()
	return startShard(t, dir, 0, change)
}

func startShard(t *testing.T, dir string, shard int, change func(*config.Queue, *Deps)) *running {
	t.Helper()
	cfg := &config.Queue{Memory: config.Bounds{Records: 10_000, Bytes: 64 << 20}, Disk: config.Bounds{Records: 1 << 40, Bytes: 1 << 40},
		SpillAfter: 20 * time.Millisecond, CommitAfter: "safe", Lease: 30 * time.Second,
		Subscriptions: map[string]*config.Subscription{"all": {Topics: []string{"*"}, Required: true}, "odd": {Topics: []string{"odd"}, Required: true}}}
	r := &running{t: t, ready: make(chan bool, 100)}
	log := slog.New(slog.DiscardHandler)
	deps := Deps{Log: log, OnReady: func(ready bool, _ string) { r.ready <- ready }}
	if change != nil {
		change(cfg, &deps)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(config.Buffer{Listen: lis.Addr().String(), DataDir: dir, Shard: shard, Queues: map[string]*config.Queue{"c": cfg}}, deps)
	if err != nil {
		t.Fatal(err)
	}
	r.service = s
	srv := rpc.NewServer(log)
	s.Register(srv.GRPC)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	go func() { ended <- srv.Serve(ctx, lis) }()
	if r.conn, err = rpc.Dial(lis.Addr().String()); err != nil {
		t.Fatal(err)
	}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		r.conn.Close()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("stop: %v", err)
			}
		}
	}
	t.Cleanup(r.stop)
	r.awaitReady(true)
	return r
}

func (r *running) awaitReady(want bool) {
	r.t.Helper()
	for got := range r.ready {
		if got == want {
			return
		}
	}
}

func (r *running) appendStream() spillwayv1.BufferService_AppendClient {
	r.t.Helper()
	s, err := spillwayv1.NewBufferServiceClient(r.conn).Append(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.send(s, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Client: "test"}}})
	if m, err := s.Recv(); err != nil || m.GetOpened() == nil {
		r.t.Fatalf("open: %v, %v", m, err)
	}
	return s
}

func (r *running) send(s spillwayv1.BufferService_AppendClient, m *spillwayv1.AppendRequest) {
	r.t.Helper()
	if err := s.Send(m); err != nil {
		r.t.Fatalf("send: %v", err)
	}
}

func source(topic string) *spillwayv1.SourcePartition {
	return &spillwayv1.SourcePartition{Cluster: "k", Topic: topic}
}

func batch(topic string, first, next int64, value string) *spillwayv1.Batch {
	var payload []byte
	for o := first; o < next; o++ {
		payload = recordbatch.AppendRecord(payload, &recordbatch.Record{OffsetDelta: o - first, Value: []byte(value)})
	}
	return &spillwayv1.Batch{Source: source(topic), FirstOffset: first, NextOffset: next, RecordCount: int32(next - first),
		Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: recordbatch.CRC(payload), Payload: payload}
}

// appended sends a batch and waits for its result; it also returns the safe offset once it has
// risen to the batch's end.
func (r *running) appended(s spillwayv1.BufferService_AppendClient, b *spillwayv1.Batch) *spillwayv1.Appended {
	r.t.Helper()
	r.send(s, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: b}})
	return r.result(s)
}

// result waits for the result of a batch or settle.
func (r *running) result(s spillwayv1.BufferService_AppendClient) *spillwayv1.Appended {
	r.t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			r.t.Fatalf("recv: %v", err)
		}
		if a := m.GetAppended(); a != nil {
			return a
		}
	}
}

func (r *running) assign(s spillwayv1.BufferService_AppendClient, topic string) *spillwayv1.PartitionAssigned {
	r.t.Helper()
	r.send(s, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source(topic)}}})
	for {
		m, err := s.Recv()
		if err != nil {
			r.t.Fatalf("recv: %v", err)
		}
		if a := m.GetAssigned(); a != nil {
			return a
		}
	}
}

func (r *running) consume(sub string) spillwayv1.BufferService_ConsumeClient {
	r.t.Helper()
	s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range []*spillwayv1.ConsumeRequest{
		{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: sub, Consumer: "test", Ordering: spillwayv1.Ordering_ORDERING_NONE}}},
		{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1 << 20}}},
	} {
		if err := s.Send(m); err != nil {
			r.t.Fatal(err)
		}
	}
	if m, err := s.Recv(); err != nil || m.GetOpened().GetSessionId() == 0 || m.GetOpened().LeaseDuration.AsDuration() != 30*time.Second {
		r.t.Fatalf("open: %v, %v", m, err)
	}
	return s
}

func next[T any](t *testing.T, s spillwayv1.BufferService_ConsumeClient, pick func(*spillwayv1.ConsumeResponse) *T) *T {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatalf("recv: %v", err)
	}
	v := pick(m)
	if v == nil {
		t.Fatalf("got %v", m)
	}
	return v
}

func sendAck(t *testing.T, s spillwayv1.BufferService_ConsumeClient, a *spillwayv1.Ack) {
	t.Helper()
	if err := s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: a}}); err != nil {
		t.Fatal(err)
	}
}

func TestBatchesGoThroughAndSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil)
	in := r.appendStream()
	if a := r.assign(in, "t"); a.Known {
		t.Fatalf("a new partition is known: %v", a)
	}
	if a := r.appended(in, batch("t", 10, 20, "first")); a.Status != nil || a.Duplicate {
		t.Fatalf("append: %v", a)
	}
	if a := r.appended(in, batch("t", 12, 20, "again")); a.Status != nil || !a.Duplicate {
		t.Fatalf("append of what is known: %v", a)
	}
	r.appended(in, batch("t", 20, 30, "second"))
	for safe := int64(0); safe < 30; { // both are on disk after spill_after
		m, err := in.Recv()
		if err != nil {
			t.Fatal(err)
		}
		safe = max(safe, m.GetSafe().GetOffset())
	}
	out := r.consume("c/all")
	first := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: first.LeaseId}},
		StateChanges: []*spillwayv1.StateChange{{Key: "file", Value: []byte("x")}, {Key: "empty", Value: []byte{}}}})
	if res := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); res.Id != 1 || res.Status != nil {
		t.Fatalf("ack: %v", res)
	}
	r.stop()

	r = start(t, dir, nil)
	if a := r.assign(r.appendStream(), "t"); !a.Known || a.ResumeOffset != 30 || a.SafeOffset != 30 {
		t.Fatalf("after a restart: %v", a)
	}
	out = r.consume("c/all")
	var lease *spillwayv1.Lease
	var adopted *spillwayv1.Adopt
	for lease == nil || adopted == nil {
		m, err := out.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetLease() != nil {
			lease = m.GetLease()
		}
		if m.GetAdopt() != nil {
			adopted = m.GetAdopt()
		}
	}
	want := batch("t", 20, 30, "second")
	if lease.Batch.FirstOffset != 20 || string(lease.Batch.Payload) != string(want.Payload) || lease.Batch.PayloadCrc32C != want.PayloadCrc32C {
		t.Fatalf("leased %v, want the batch that was not acked", lease.Batch)
	}
	state := map[string]string{}
	for _, e := range adopted.Entries {
		state[e.Key] = string(e.Value)
	}
	if v, ok := state["empty"]; len(state) != 2 || state["file"] != "x" || v != "" || !ok {
		t.Fatalf("adopted %v", state)
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	r := start(t, t.TempDir(), func(q *config.Queue, _ *Deps) { q.Disk.Records = 15 })
	in := r.appendStream()
	r.appended(in, batch("t", 10, 20, "v"))
	damaged := batch("t", 20, 21, "v")
	damaged.PayloadCrc32C++
	unknown := batch("t", 20, 21, "v")
	unknown.Codec = 77
	many := batch("t", 20, 21, "v")
	many.RecordCount = 2
	for _, c := range []struct {
		name   string
		b      *spillwayv1.Batch
		code   codes.Code
		reason string
	}{
		{"gap", batch("t", 21, 22, "v"), codes.FailedPrecondition, "SOURCE_GAP"},
		{"checksum", damaged, codes.DataLoss, "CHECKSUM_MISMATCH"},
		{"codec", unknown, codes.InvalidArgument, "MALFORMED"},
		{"count", many, codes.InvalidArgument, "MALFORMED"},
		{"fits", batch("t", 20, 25, "v"), codes.OK, ""},
		{"full", batch("t", 25, 30, "v"), codes.ResourceExhausted, "QUEUE_FULL"},
	} {
		a := r.appended(in, c.b)
		checkStatus(t, c.name, rpc.StatusError(a.Status), c.code, c.reason)
		if retry := a.Status != nil && len(a.Status.Details) > 1; retry != (c.code == codes.ResourceExhausted) {
			t.Errorf("%s: RetryInfo is there: %v", c.name, retry)
		}
	}

	client := spillwayv1.NewBufferServiceClient(r.conn)
	for _, c := range []struct {
		name   string
		open   *spillwayv1.ConsumeRequest
		code   codes.Code
		reason string
	}{
		{"no open", &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1}}}, codes.InvalidArgument, "MALFORMED"},
		{"no queue", openConsume("x/all"), codes.NotFound, "QUEUE_NOT_FOUND"},
		{"no subscription", openConsume("c/x"), codes.NotFound, "SUBSCRIPTION_NOT_FOUND"},
		{"no slash", openConsume("c"), codes.InvalidArgument, "MALFORMED"},
	} {
		s, err := client.Consume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(c.open); err != nil {
			t.Fatal(err)
		}
		_, err = s.Recv()
		checkStatus(t, c.name, err, c.code, c.reason)
	}
	for name, m := range map[string]*spillwayv1.ConsumeRequest{
		"credit below zero": {Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: -1}}},
		"empty state key":   {Message: &spillwayv1.ConsumeRequest_Ack{Ack: &spillwayv1.Ack{Id: 1, StateChanges: []*spillwayv1.StateChange{{Value: []byte("v")}}}}},
		"large state": {Message: &spillwayv1.ConsumeRequest_Ack{Ack: &spillwayv1.Ack{Id: 1,
			StateChanges: []*spillwayv1.StateChange{{Key: "k", Value: make([]byte, queue.MaxStateValueBytes+1)}}}}},
	} {
		s := r.consume("c/odd")
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
		_, err := s.Recv()
		checkStatus(t, name, err, codes.InvalidArgument, "MALFORMED")
	}
	s := r.consume("c/odd")
	sendAck(t, s, &spillwayv1.Ack{Id: 7, Leases: []*spillwayv1.AckedLease{{LeaseId: 12345}}})
	res := next(t, s, (*spillwayv1.ConsumeResponse).GetAckResult)
	checkStatus(t, "ack of a foreign lease", rpc.StatusError(res.Status), codes.FailedPrecondition, "LEASE_NOT_HELD")
}

func openConsume(sub string) *spillwayv1.ConsumeRequest {
	return &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: sub, Ordering: spillwayv1.Ordering_ORDERING_NONE}}}
}

func checkStatus(t *testing.T, name string, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	got := ""
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			got = info.Reason
		}
	}
	if st.Code() != code || got != reason {
		t.Errorf("%s: %v with reason %q, want %s with %q", name, err, got, code, reason)
	}
}

func TestADeadStreamGivesItsLeasesToOthers(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	r.appended(r.appendStream(), batch("t", 0, 10, "v"))
	ctx, kill := context.WithCancel(t.Context())
	dying, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*spillwayv1.ConsumeRequest{openConsume("c/all"), {Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 100}}}} {
		if err := dying.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	next(t, dying, (*spillwayv1.ConsumeResponse).GetOpened)
	next(t, dying, (*spillwayv1.ConsumeResponse).GetLease)
	heir := r.consume("c/all")
	kill()
	if l := next(t, heir, (*spillwayv1.ConsumeResponse).GetLease); l.Attempt != 2 || l.Batch.FirstOffset != 0 {
		t.Fatalf("redelivered %v", l)
	}
}

func TestAdmin(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "hello"))
	r.appended(in, batch("odd", 5, 8, "strange"))
	a := spillwayv1.NewBufferAdminServiceClient(r.conn)
	ctx := t.Context()

	queues, err := a.ListQueues(ctx, &spillwayv1.ListQueuesRequest{})
	if err != nil || len(queues.Queues) != 1 || queues.Queues[0].PendingRecords != 13 || queues.Queues[0].State != "open" {
		t.Errorf("ListQueues: %v, %v", queues, err)
	}
	q, err := a.GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: "c"})
	if err != nil || len(q.Partitions) != 2 || q.Partitions[0].Source.Topic != "odd" || q.Partitions[0].AppendedOffset != 8 {
		t.Errorf("GetQueue: %v, %v", q, err)
	}
	page, err := a.ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{PageSize: 1})
	if err != nil || len(page.Subscriptions) != 1 || page.Subscriptions[0].Name != "c/all" || page.Subscriptions[0].PendingRecords != 13 {
		t.Errorf("ListSubscriptions: %v, %v", page, err)
	}
	page, err = a.ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{PageSize: 1, PageToken: page.NextPageToken})
	if err != nil || len(page.Subscriptions) != 1 || page.Subscriptions[0].PendingRecords != 3 || page.NextPageToken != "" {
		t.Errorf("ListSubscriptions, next page: %v, %v", page, err)
	}
	if p, err := a.PauseSubscription(ctx, &spillwayv1.PauseSubscriptionRequest{Name: "c/odd"}); err != nil || !p.Subscription.Paused {
		t.Errorf("PauseSubscription: %v, %v", p, err)
	}
	if p, err := a.ResumeSubscription(ctx, &spillwayv1.ResumeSubscriptionRequest{Name: "c/odd"}); err != nil || p.Subscription.Paused {
		t.Errorf("ResumeSubscription: %v, %v", p, err)
	}
	peeked, err := a.PeekRecords(ctx, &spillwayv1.PeekRecordsRequest{Subscription: "c/odd", Limit: 2})
	if err != nil || len(peeked.Records) != 2 || peeked.Records[1].Offset != 6 || string(peeked.Records[1].Record.Value) != "strange" {
		t.Errorf("PeekRecords: %v, %v", peeked, err)
	}
	out := r.consume("c/odd")
	l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId, DeadLetters: []*spillwayv1.DeadLetter{{Offset: 6, Reason: "odd"}}}}})
	next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult)
	sub, err := a.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/odd"})
	if err != nil || sub.Subscription.PendingRecords != 0 || len(sub.Partitions) != 1 || sub.Partitions[0].SettledOffset != 8 ||
		sub.Partitions[0].Outcomes["delivered"] != 2 || sub.Partitions[0].Outcomes["dead_lettered"] != 1 {
		t.Errorf("GetSubscription: %v, %v", sub, err)
	}
	sessions, err := a.ListSessions(ctx, &spillwayv1.ListSessionsRequest{})
	if err != nil || len(sessions.Sessions) != 1 || sessions.Sessions[0].Subscription != "c/odd" || !sessions.Sessions[0].Live {
		t.Errorf("ListSessions: %v, %v", sessions, err)
	}
	_, err = a.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/evne"})
	checkStatus(t, "unknown subscription", err, codes.NotFound, "SUBSCRIPTION_NOT_FOUND")
	_, err = a.GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: "x"})
	checkStatus(t, "unknown queue", err, codes.NotFound, "QUEUE_NOT_FOUND")
}

// failingStore fails one Append after it was told to.
type failingStore struct {
	queue.Store
	fail chan error
}

func (f *failingStore) Append(entries []queue.Entry) ([]queue.Ref, error) {
	select {
	case err := <-f.fail:
		return nil, err
	default:
		return f.Store.Append(entries)
	}
}

func TestAQueueWhoseStoreFailsIsOpenedAgain(t *testing.T) {
	fail := make(chan error, 1)
	r := start(t, t.TempDir(), func(_ *config.Queue, d *Deps) {
		d.OpenStore = func(dir string, o queue.StoreOptions) (queue.Store, error) {
			s, err := nutsstore.Open(filepath.Clean(dir), nutsstore.Config{}, o)
			if err != nil {
				return nil, err
			}
			return &failingStore{s, fail}, nil
		}
	})
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	out := r.consume("c/all")
	l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	fail <- errors.New("no space left on device")
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId}}})
	if m, err := out.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatalf("%v, %v, want the stream to end without an answer", m, err)
	}
	r.awaitReady(false)
	r.awaitReady(true)
	out = r.consume("c/all")
	in = r.appendStream()
	if a := r.assign(in, "t"); !a.Known || a.ResumeOffset == 0 { // it was in memory only, or its spill failed
		r.appended(in, batch("t", 0, 10, "v"))
	}
	next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
}

// TestAStoreThatTurnsSlow: while a write to the store hangs, batches are taken and leased from
// memory; only acks wait, and nothing is called safe. Then all of it is answered.
func TestAStoreThatTurnsSlow(t *testing.T) {
	faults := &faultstore.Faults{}
	r := start(t, t.TempDir(), func(q *config.Queue, d *Deps) {
		q.SpillAfter = time.Minute
		d.OpenStore = func(dir string, o queue.StoreOptions) (queue.Store, error) {
			s, err := nutsstore.Open(dir, nutsstore.Config{}, o)
			if err != nil {
				return nil, err
			}
			return faults.Wrap(s), nil
		}
	})
	in, out := r.appendStream(), r.consume("c/all")
	r.appended(in, batch("t", 0, 10, "v"))
	first := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	block := faults.BlockAppend()
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: first.LeaseId}}})
	<-block.Entered()
	for i := range int64(20) {
		r.appended(in, batch("t", 10+i, 11+i, "v"))
		if l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease); l.Batch.FirstOffset != 10+i {
			t.Fatalf("leased %v", l)
		}
	}
	if a := r.assign(in, "t"); a.SafeOffset != 0 || a.ResumeOffset != 30 {
		t.Fatalf("%v, want safe 0, resume 30", a)
	}
	block.Release()
	if result := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); result.Id != 1 || result.Status != nil {
		t.Fatalf("%v", result)
	}
	if a := r.assign(in, "t"); a.SafeOffset != 10 {
		t.Fatalf("%v, want safe 10", a)
	}
}

func TestLedgerIDIsTold(t *testing.T) {
	dir := t.TempDir()
	opened := func(r *running) *spillwayv1.ConsumeOpened {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
			Subscription: "c/all", Ordering: spillwayv1.Ordering_ORDERING_NONE}}}); err != nil {
			t.Fatal(err)
		}
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m.GetOpened()
	}
	r := start(t, dir, nil)
	id := opened(r).LedgerId
	if id == "" {
		t.Error("no ledger id is told")
	}
	r.stop()
	r = start(t, dir, nil)
	if got := opened(r).LedgerId; got != id {
		t.Errorf("ledger id after a restart: %q, before: %q", got, id)
	}
	r.stop()
	if got := opened(start(t, t.TempDir(), nil)).LedgerId; got == id || got == "" {
		t.Errorf("ledger id of new data: %q, of others: %q", got, id)
	}
}
