package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// inKafka initializes topics in a cluster in memory, and has queues kept there.
func inKafka(t *testing.T, opts ...kfake.Opt) func(*config.Queue, *Deps) {
	t.Helper()
	return inKafkaShards(t, 1, opts...)
}

func inKafkaShards(t *testing.T, shards int, opts ...kfake.Opt) func(*config.Queue, *Deps) {
	t.Helper()
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	kafkaclienttest.KeepSettings(c)
	change := func(q *config.Queue, _ *Deps) {
		q.CommitAfter = "delivered"
		if shards > 1 {
			q.Shards = shards
		}
		q.Store.Kafka = &config.KafkaStore{Brokers: c.ListenAddrs(), Namespace: "n", Topic: "spillway.n.c", Replication: 1}
	}
	q := &config.Queue{}
	change(q, nil)
	if _, _, err := kafkastore.Init(t.Context(), KafkaTopics("c", q, kafkaclient.Access{}), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return change
}

// queue is that of the only shard that the service has.
func (s *Service) queue(name string) (*queue.Queue, error) {
	all, err := s.openShards(name)
	if err != nil {
		return nil, err
	}
	return all[0].Queue, nil
}

// only is the only shard of a queue that the service has.
func (s *Service) only(name string) *shard { return s.queues[name].here()[0] }

// TestAnotherBufferTakesOver has a second buffer, with an empty disk, take the shard of one that
// goes on: it delivers what is left, and the first one answers nothing more and says why.
func TestAnotherBufferTakesOver(t *testing.T) {
	change := inKafka(t)
	registry := prometheus.NewRegistry()
	first := start(t, t.TempDir(), func(q *config.Queue, d *Deps) {
		change(q, d)
		d.Registerer = registry
	})
	shard := func(r *running) *spillwayv1.Shard {
		t.Helper()
		list, err := spillwayv1.NewClusterServiceClient(r.conn).ListShards(t.Context(), &spillwayv1.ListShardsRequest{})
		if err != nil || len(list.Shards) != 1 {
			t.Fatalf("listed %v: %v", list, err)
		}
		return list.Shards[0]
	}
	before := shard(first)
	if before.State != "open" || before.Epoch == 0 || before.Life == "" {
		t.Errorf("listed %v", before)
	}
	in, out := first.appendStream(), first.consume("c/all")
	first.appended(in, batch("t", 0, 10, "v"))
	l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId}}})
	if result := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); result.Status != nil {
		t.Fatal(result)
	}
	first.appended(in, batch("t", 10, 20, "v"))
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		q, err := first.service.queue("c")
		if err != nil {
			t.Fatal(err)
		}
		if q.Stats().SpilledRecords >= 10 {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("the second batch is not spilled")
		}
	}

	second := start(t, t.TempDir(), change)
	after := shard(second)
	if after.State != "open" || after.Epoch <= before.Epoch || after.Life != before.Life {
		t.Errorf("the heir lists %v, the former owner %v", after, before)
	}
	heir := second.appendStream()
	if a := second.assign(heir, "t"); !a.Known || a.ResumeOffset != 20 || a.SafeOffset != 10 {
		t.Errorf("the heir goes on at %v, want 20, safe 10", a)
	}
	leased := next(t, second.consume("c/all"), (*spillwayv1.ConsumeResponse).GetLease)
	if leased.Batch.FirstOffset != 10 || len(leased.Batch.Payload) == 0 {
		t.Errorf("the heir leases %v, want what was not settled", leased)
	}

	first.appended(in, batch("t", 20, 30, "v")) // in memory only, until it is to be written
	for {
		if _, err := in.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the former owner's stream ends with %v", err)
			}
			break
		}
	}
	first.awaitReady(false) // when it closes the queue, before it knows what became of it
	eventually(t, "the former owner is fenced", func() bool { return strings.HasPrefix(shard(first).State, "fenced: ") })
	if s := shard(first); s.Life != "" || s.Epoch != before.Epoch {
		t.Errorf("the former owner lists %v", s)
	}
	a, err := spillwayv1.NewBufferServiceClient(first.conn).Append(t.Context())
	if err == nil {
		err = a.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k"}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err := a.Recv(); rpc.Reason(err) != "NOT_OWNER" {
		t.Errorf("a stream to the former owner: %v, %v", m, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	fenced := 0.
	for _, f := range families {
		if f.GetName() == "spillway_buffer_queue_fenced" {
			fenced = f.Metric[0].Gauge.GetValue()
		}
	}
	if fenced != 1 {
		t.Errorf("spillway_buffer_queue_fenced is %v", fenced)
	}
	if a := second.appended(heir, batch("t", 20, 30, "v")); a.Status != nil || a.Duplicate {
		t.Errorf("the heir answers %v", a)
	}
}

// ownedStore is a store in memory that fails when it was told to.
type ownedStore struct {
	flaky
	epoch int64
	err   error
}

func (s *ownedStore) Epoch() int64 { return s.epoch }

func (s *ownedStore) Check() error {
	if s.broken.Load() {
		return s.err
	}
	return nil
}

// TestALostShardStaysClosed: what another buffer has taken over is not opened again by itself, and
// neither is what was replaced. Any other error is.
func TestALostShardStaysClosed(t *testing.T) {
	for _, test := range []struct {
		err    error
		state  string // prefix of it
		opened int64
	}{
		{fmt.Errorf("write: %w", kafkastore.ErrFenced), "fenced: ", 1},
		{fmt.Errorf("write: %w", kafkastore.ErrReplaced), "stopped: ", 1},
		{errIO, "open", 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			var broken atomic.Bool
			opened := int64(0)
			memory := memstore.New()
			cfg := lifecycleConfig("q")
			cfg.DataDir = ""
			cfg.Queues["q"].Store.Kafka = &config.KafkaStore{}
			reported := readiness{}
			s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), OnReady: func(ready bool, reason string) { reported = readiness{ready, reason} },
				OpenKafka: func(_ context.Context, c kafkastore.Config, o queue.StoreOptions) (KafkaStore, error) {
					if c.After != 7*opened || c.Instance == "" {
						t.Errorf("opened by %q after the epoch %d, want %d", c.Instance, c.After, 7*opened)
					}
					opened++
					broken.Store(false)
					store, err := memory.Reopen(o)
					return &ownedStore{flaky{store, &broken}, 7 * opened, test.err}, err
				}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			synctest.Wait()
			m := s.only("q")
			if q, state := m.get(); q == nil || state != "open" || m.ownerEpoch() != 7 {
				t.Fatalf("the queue is %s, epoch %d", state, m.ownerEpoch())
			}
			broken.Store(true)
			time.Sleep(time.Hour)
			synctest.Wait()
			_, state := m.get()
			if opened != test.opened || !strings.HasPrefix(state, test.state) || m.ownerEpoch() != uint64(7*test.opened) {
				t.Errorf("%v: opened %d times, %s, epoch %d; want %d times, %s", test.err, opened, state, m.ownerEpoch(), test.opened, test.state)
			}
			if lost := test.opened == 1; m.isLost() != lost || reported.ready == lost || lost && !strings.Contains(reported.reason, test.err.Error()) {
				t.Errorf("%v: lost is %v, readiness %+v", test.err, m.isLost(), reported)
			}
			if _, err := s.queue("q"); test.opened == 1 && !errors.Is(err, errNotOwner) {
				t.Errorf("%v: a stream is refused with %v", test.err, err)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAQueueChangesItsPlace: data of a queue in the directory refuses a queue in Kafka, and the
// mark that this leaves refuses the way back, each with what to do.
func TestAQueueChangesItsPlace(t *testing.T) {
	dir := t.TempDir()
	open := func(place string, kafka bool) error {
		t.Helper()
		cfg := lifecycleConfig("q")
		cfg.DataDir = filepath.Join(dir, place)
		if kafka {
			cfg.Queues["q"].Store.Kafka = &config.KafkaStore{Topic: "spill", Brokers: []string{"k:1"}}
		}
		s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), OpenKafka: func(_ context.Context, _ kafkastore.Config, o queue.StoreOptions) (KafkaStore, error) {
			store, err := memstore.New().Reopen(o)
			return &ownedStore{flaky: flaky{store, new(atomic.Bool)}}, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		o, err := s.open(t.Context(), s.only("q"), opening{})
		if err == nil {
			err = o.q.Run(ctx)
		}
		return err
	}
	for _, step := range []struct {
		place string
		kafka bool
		wrong string // part of the error
	}{
		{"a", false, ""}, {"a", true, "has data of the queue"}, {"a", false, ""},
		{"b", true, ""}, {"b", true, ""}, {"b", false, "it was in the topics spill.* of [k:1]"}, {"b", true, ""},
	} {
		err := open(step.place, step.kafka)
		if (err == nil) != (step.wrong == "") || err != nil && (!errors.Is(err, errOtherPlace) || !strings.Contains(err.Error(), step.wrong)) {
			t.Errorf("%+v: %v", step, err)
		}
	}
}

// TestRetentionIsHeard has an ingest tell what its Kafka may delete soon: a queue that is kept in
// Kafka wants to know, and stores what it has in memory only.
func TestRetentionIsHeard(t *testing.T) {
	for _, kafka := range []bool{true, false} {
		change := func(*config.Queue, *Deps) {}
		if kafka {
			change = inKafka(t)
		}
		r := start(t, t.TempDir(), func(q *config.Queue, d *Deps) {
			change(q, d)
			q.SpillAfter = time.Hour
		})
		in, err := spillwayv1.NewBufferServiceClient(r.conn).Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k"}}})
		if m, err := in.Recv(); err != nil || m.GetOpened().GetWantsRetention() != kafka {
			t.Fatalf("opened %v, %v; want wants_retention %v", m, err, kafka)
		}
		r.appended(in, batch("t", 0, 10, "v"))
		tell := func(topic string, old int64) {
			t.Helper()
			r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Retention{Retention: &spillwayv1.SourceRetention{
				Source: source(topic), EndOffset: 10, OldOffset: old}}})
			r.assign(in, topic) // it has been heard
		}
		tell("other", 5)
		tell("t", 0)
		q, err := r.service.queue("c")
		if err != nil {
			t.Fatal(err)
		}
		if n := q.Stats().SpilledRecords; n != 0 {
			t.Errorf("%d records are spilled, and none is old", n)
		}
		tell("t", 5)
		for begin := time.Now(); kafka && q.Stats().SpilledRecords < 10; time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				t.Fatal("what is old is not stored")
			}
		}
		r.stop()
	}
}
