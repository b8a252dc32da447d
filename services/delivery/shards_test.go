package delivery

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// fakeCluster says that its buffer has one shard of queue q.
type fakeCluster struct {
	spillwayv1.UnimplementedClusterServiceServer
	number, of int32
}

func (c *fakeCluster) ListShards(context.Context, *spillwayv1.ListShardsRequest) (*spillwayv1.ListShardsResponse, error) {
	return &spillwayv1.ListShardsResponse{Shards: []*spillwayv1.Shard{{Queue: "q", Number: c.number, Of: c.of}}}, nil
}

// shardSink keeps what it is served, until it is told to let go.
type shardSink struct {
	fakeSink
	mu      sync.Mutex
	serving map[*session]bool
	most    map[int]int // sessions at a time, by shard
	drains  time.Duration
}

func (k *shardSink) WantsWatermarks() bool { return true }

func (k *shardSink) Serve(ctx context.Context, s Session) error {
	own := s.(*session)
	k.mu.Lock()
	k.serving[own] = true
	n := 0
	for other := range k.serving {
		if other.shard == own.shard {
			n++
		}
	}
	k.most[own.shard] = max(k.most[own.shard], n)
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.serving, own)
	}()
	err := ackAll(ctx, s)
	time.Sleep(k.drains) // its destination is slow
	return err
}

// of returns the session of a shard.
func (k *shardSink) of(shard int) *session {
	k.mu.Lock()
	defer k.mu.Unlock()
	for s := range k.serving {
		if s.shard == shard {
			return s
		}
	}
	return nil
}

// TestOneSessionForEachShard holds a session with the owner of each shard, wherever they are in
// the list, is ready with all of them, divides its memory, never serves a shard twice, and takes
// time from the slowest.
func TestOneSessionForEachShard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const shards = 3
		buffers := make(map[string]*fakeBuffer)
		var byShard [shards]*fakeBuffer
		var addresses []string
		for i, shard := range []int32{2, 0, 1} {
			address := fmt.Sprint("buffer-", i, ":7400")
			buffers[address] = startFakeBuffer(t, func(r grpc.ServiceRegistrar) {
				spillwayv1.RegisterClusterServiceServer(r, &fakeCluster{number: shard, of: shards})
			})
			byShard[shard] = buffers[address]
			addresses = append(addresses, address)
		}
		sink := &shardSink{serving: make(map[*session]bool), most: make(map[int]int), drains: time.Minute}
		var ready []string
		s, err := New("d", &config.Delivery{Subscription: "q/s", Memory: 3 * memory, Kafka: &config.Kafka{}}, addresses, sink, Deps{
			Log: slog.New(slog.DiscardHandler), Instance: "me", Dial: func(address string) (*grpc.ClientConn, error) { return buffers[address].dial(address) },
			OnReady: func(_ bool, reason string) { ready = append(ready, reason) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()

		var streams [shards]*fakeStream
		accept := func(shard int) {
			stream := <-byShard[shard].streams
			stream.t = t
			streams[shard] = stream
			if c := stream.open.Shard; c.GetNumber() != int32(shard) || c.GetOf() != shards {
				t.Errorf("the owner of shard %d is asked for %v", shard, c)
			}
			if granted := stream.next().GetCredit().GetBytes(); granted != memory {
				t.Errorf("shard %d is granted %d bytes, want a third of the delivery's, %d", shard, granted, memory)
			}
		}
		for shard := range shards {
			accept(shard)
		}
		synctest.Wait()
		if ready[len(ready)-1] != "" {
			t.Errorf("readiness went %q, want it to end with all sessions", ready)
		}
		if n := sink.of(0).Sessions(); n != shards {
			t.Errorf("there are %d sessions, says one of them", n)
		}

		passed := func(shard int, ms int64) {
			t.Helper()
			if err := streams[shard].Send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Watermark{Watermark: &spillwayv1.Watermark{PassedMs: ms, CompleteMs: ms - 1}}}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		expect := func(what string, want Watermark) {
			t.Helper()
			for shard := range shards {
				session := sink.of(shard)
				if session == nil {
					continue
				}
				got := Watermark{}
				select {
				case got = <-session.Watermarks():
				default:
				}
				if got != want {
					t.Errorf("%s: shard %d hears of %v, want %v", what, shard, got, want)
				}
			}
		}
		passed(0, 1000)
		passed(2, 3000)
		expect("shard 1 has not told", Watermark{})
		passed(1, 2000)
		expect("all have told", Watermark{1000, 999})
		passed(0, 5000)
		expect("the slowest went on", Watermark{2000, 1999})

		// A session that is lost: the next one opens when Serve has returned.
		streams[1].end <- status.Error(codes.Unavailable, "gone")
		synctest.Wait()
		if last := ready[len(ready)-1]; last == "" {
			t.Errorf("ready without shard 1: %q", ready)
		}
		passed(0, 6000)
		expect("shard 1 has no session", Watermark{})
		time.Sleep(2 * time.Minute)
		accept(1)
		synctest.Wait()
		passed(2, 7000)
		expect("shard 1 has not told again", Watermark{})
		passed(1, 6500)
		expect("it has", Watermark{6000, 5999})
		if ready[len(ready)-1] != "" {
			t.Errorf("readiness went %q", ready)
		}

		sink.drains = 0
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for shard, most := range sink.most {
			if most != 1 {
				t.Errorf("shard %d was served %d times at once", shard, most)
			}
		}
		if len(sink.most) != shards || len(sink.serving) != 0 || !sink.closed {
			t.Errorf("%d shards were served, %d still are, the sink is closed: %v", len(sink.most), len(sink.serving), sink.closed)
		}
	})
}

// TestNeverBackToAFormerOwner refuses a buffer whose epoch is lower than one that was seen in the
// same life, and believes it in another.
func TestNeverBackToAFormerOwner(t *testing.T) {
	s, refused := &shards.Seen{Number: 2, Of: 5}, 0
	for _, step := range []struct {
		life  string
		epoch uint64
		want  bool
	}{{"A", 7, true}, {"A", 7, true}, {"A", 6, false}, {"A", 9, true}, {"B", 1, true}, {"B", 0, false}, {"A", 3, true}} {
		if err := s.Admit("b:7400", step.life, step.epoch); (err == nil) != step.want {
			t.Errorf("life %s, epoch %d: %v", step.life, step.epoch, err)
		} else if err != nil {
			refused++
		}
	}
	if c := s.Claim(); refused != 2 || c.Life != "A" || c.Epoch != 3 || c.Number != 2 || c.Of != 5 {
		t.Errorf("claims %v after %d refusals", c, refused)
	}
}
