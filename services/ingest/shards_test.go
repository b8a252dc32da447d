package ingest

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// fakeCluster says that its buffer has one shard of queue q, unless it is away.
type fakeCluster struct {
	spillwayv1.UnimplementedClusterServiceServer
	number, of int32
	away       *atomic.Bool
}

func (c *fakeCluster) ListShards(context.Context, *spillwayv1.ListShardsRequest) (*spillwayv1.ListShardsResponse, error) {
	if c.away.Load() {
		return nil, status.Error(codes.Unavailable, "away")
	}
	return &spillwayv1.ListShardsResponse{Shards: []*spillwayv1.Shard{{Queue: "q", Number: c.number, Of: c.of}}}, nil
}

// TestPartitionsGoToTheirShards: each buffer gets the partitions of its shard and commits follow
// it; one that is away holds up no others, and gets its partitions when it is back.
func TestPartitionsGoToTheirShards(t *testing.T) {
	const of, partitions = 3, 12
	c := startKafka(t, partitions, topic)
	var away atomic.Bool
	var nobody atomic.Bool
	var addresses []string
	buffers := make([]*fakeBuffer, of)
	for _, shard := range []int32{2, 0, 1} {
		cluster := &fakeCluster{number: shard, of: of, away: &nobody}
		if shard == 1 {
			cluster.away = &away
		}
		b := startBuffer(t, func(r grpc.ServiceRegistrar) { spillwayv1.RegisterClusterServiceServer(r, cluster) })
		buffers[shard] = b
		addresses = append(addresses, b.addr)
	}
	away.Store(true)
	c.produce(numbered(1200, partitions, 0)...)
	s, err := New(config.Ingest{Memory: 8 * config.MiB, Sources: map[string]*config.Source{"s": c.source()}}, addresses,
		Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	complete := func(shard int) bool {
		there := buffers[shard].records(topic)
		for p := range partitions {
			own := shards.Of(s.sources[0].clusterID(), topic, int32(p), of) == shard
			if !own && len(there[p]) > 0 {
				t.Fatalf("shard %d has partition %d", shard, p)
			}
			if own && (len(there[p]) < 1200/partitions || c.committed(int32(p)) != 1200/partitions) {
				return false
			}
		}
		return true
	}
	waitFor(t, "the shards whose buffers are there", func() bool { return complete(0) && complete(2) })
	if n := len(buffers[1].records(topic)); n != 0 {
		t.Errorf("the buffer that is away has %d partitions", n)
	}
	if state := s.sources[0].status(); state.State != "waiting for the buffer" || state.LastError == "" {
		t.Errorf("the source is %s, %s", state.State, state.LastError)
	}
	away.Store(false)
	waitFor(t, "the shard whose buffer is back", func() bool { return complete(1) })
	for shard, b := range buffers {
		b.set(func() {
			if b.streams < 1 {
				t.Errorf("no stream to shard %d", shard)
			}
		})
	}
}
