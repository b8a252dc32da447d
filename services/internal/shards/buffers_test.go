package shards

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// fakeBuffer tells what it has; nil is of a version before shards.
type fakeBuffer struct {
	spillwayv1.UnimplementedClusterServiceServer
	shards []*spillwayv1.Shard
	err    error
	silent bool // it does not answer
}

func (f *fakeBuffer) ListShards(ctx context.Context, _ *spillwayv1.ListShardsRequest) (*spillwayv1.ListShardsResponse, error) {
	if f.silent {
		<-ctx.Done()
	}
	return &spillwayv1.ListShardsResponse{Shards: f.shards}, f.err
}

func has(number, of int32) *fakeBuffer {
	return &fakeBuffer{shards: []*spillwayv1.Shard{{Queue: "q", Number: number, Of: of}}}
}

// owns is a buffer that has taken shard 0 of 2, which is kept in Kafka; without a life it does not
// have it open.
func owns(life string, epoch uint64) *fakeBuffer {
	f := has(0, 2)
	f.shards[0].Life, f.shards[0].Epoch = life, epoch
	return f
}

// dialAll connects to buffers named a, b, c and so on.
func dialAll(t *testing.T, fakes ...*fakeBuffer) *Buffers {
	t.Helper()
	listeners := make(map[string]*bufconn.Listener)
	var addresses []string
	for i, f := range fakes {
		name := string(rune('a' + i))
		addresses = append(addresses, name)
		lis, server := bufconn.Listen(1<<16), grpc.NewServer()
		if f != nil {
			spillwayv1.RegisterClusterServiceServer(server, f)
		}
		go func() { _ = server.Serve(lis) }()
		t.Cleanup(server.Stop)
		listeners[name] = lis
	}
	b, err := Dial(addresses, func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listeners[address].DialContext(ctx) }))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestOwners finds the owners of a queue's shards wherever they are in the list, also while
// buffers are away, and says what is wrong with the files.
func TestOwners(t *testing.T) {
	away := &fakeBuffer{err: rpc.Error(codes.Unavailable, "QUEUE_RECOVERING", 0, "not now")}
	strange := &fakeBuffer{err: rpc.Error(codes.NotFound, "QUEUE_NOT_FOUND", 0, "no such queue")}
	for _, test := range []struct {
		name    string
		buffers []*fakeBuffer
		owners  string // addresses by shard, - where there is none
		wrong   string // a part of the error
	}{
		{"in another order", []*fakeBuffer{has(2, 3), has(0, 3), has(1, 3)}, "bca", ""},
		{"one is away", []*fakeBuffer{has(2, 3), away, has(1, 3)}, "-ca", ""},
		{"one has other queues", []*fakeBuffer{strange, has(0, 1)}, "b", ""},
		{"one buffer", []*fakeBuffer{has(0, 1)}, "a", ""},
		{"one buffer of a version before shards", []*fakeBuffer{nil}, "a", ""},
		{"several, one before shards", []*fakeBuffer{has(0, 2), nil}, "a-", ""},
		{"all before shards", []*fakeBuffer{nil, nil}, "", "version without shards"},
		{"all away", []*fakeBuffer{away, away}, "", "not now"},
		{"nobody has the queue", []*fakeBuffer{strange, strange}, "", "no such queue"},
		{"the same shard twice", []*fakeBuffer{has(0, 2), has(0, 2)}, "", "at a and at b both have shard 0"},
		{"taken over from one that does not know", []*fakeBuffer{has(1, 2), owns("l", 7), owns("l", 12)}, "ca", ""},
		{"taken over from one that does not know, which answers last", []*fakeBuffer{owns("l", 12), owns("l", 7), has(1, 2)}, "ac", ""},
		{"taken over from one that knows", []*fakeBuffer{owns("", 7), owns("l", 12)}, "b-", ""},
		{"taken over by one that is still reading", []*fakeBuffer{owns("l", 7), owns("", 0)}, "a-", ""},
		{"neither has it open", []*fakeBuffer{owns("", 7), owns("", 0)}, "a-", ""},
		{"the same shard twice, of two pipelines", []*fakeBuffer{owns("l", 7), owns("m", 12)}, "", "at a and at b both have shard 0"},
		{"two numbers of shards", []*fakeBuffer{has(0, 2), has(1, 3)}, "", "has 2 shards at the buffer at a, and 3 at the one at b"},
		{"nonsense", []*fakeBuffer{has(3, 3)}, "", "cannot be"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := dialAll(t, test.buffers...)
			n, err := b.Shards(t.Context(), "q")
			if test.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), test.wrong) {
					t.Errorf("%d shards, %v; want an error with %q", n, err, test.wrong)
				}
				return
			}
			if err != nil || n != len(test.owners) {
				t.Fatalf("%d shards, %v; want %d", n, err, len(test.owners))
			}
			for shard, want := range strings.Split(test.owners, "") {
				owner, err := b.Owner(t.Context(), &Seen{Queue: "q", Number: shard, Of: n})
				if want == "-" {
					if err == nil {
						t.Errorf("%s has shard %d, want nobody", owner.Address, shard)
					}
				} else if err != nil || owner.Address != want {
					t.Errorf("%q has shard %d (%v), want %s", owner.Address, shard, err, want)
				}
			}
			if len(test.buffers) > 1 {
				if _, err := b.Owner(t.Context(), &Seen{Queue: "q", Of: n + 1}); err == nil {
					t.Error("another number of shards is taken")
				}
			}
		})
	}
	if _, err := Dial(nil, nil); err == nil {
		t.Error("no address is taken")
	}
	if !slices.Equal(dialAll(t, has(0, 1), has(0, 1)).addresses(), []string{"a", "b"}) {
		t.Error("the addresses are others")
	}
}

// TestSilentBuffer: a machine that does not answer holds nobody up for long who looks for a shard
// that another one has. One that has it and does not answer is waited for.
func TestSilentBuffer(t *testing.T) {
	b := dialAll(t, &fakeBuffer{silent: true}, owns("l", 7))
	began := time.Now()
	if owner, err := b.Owner(t.Context(), &Seen{Queue: "q", Of: 2}); err != nil || owner.Address != "b" {
		t.Errorf("%q has the shard, %v", owner.Address, err)
	}
	if took := time.Since(began); took > askTimeout/2 {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*lateAfter)
	defer cancel()
	// Either end of the call may be the first to notice that its time is over, and the buffer's
	// answer may come before ctx ends here.
	began = time.Now()
	owner, err := b.Owner(ctx, &Seen{Queue: "q", Number: 1, Of: 2})
	if took := time.Since(began); err == nil || took <= lateAfter {
		t.Errorf("%q has the shard that the silent one may have, after %v: %v", owner.Address, took, err)
	}
}

// keeps is a buffer that has shard 0 of 2 in a directory; without a life it does not have it open.
func keeps(life string) *fakeBuffer { return owns(life, 0) }

// TestRivalOfAnOwner: a buffer that has the same shard by mistake, with data of its own, is
// refused and named by who has seen the first one, whether that answers, opens its queue, or is
// away; and nobody takes either who has seen none. The other shards go on.
func TestRivalOfAnOwner(t *testing.T) {
	away := &fakeBuffer{err: rpc.Error(codes.Unavailable, "QUEUE_RECOVERING", 0, "not now")}
	for _, test := range []struct {
		name    string
		buffers []*fakeBuffer // a, b and c; shard 0 was seen at a, with life l
		owner   string        // empty: none
		named   string        // in the error, or in what is reported beside the owner
	}{
		{"both answer", []*fakeBuffer{keeps("l"), keeps("m"), has(1, 2)}, "a", "the buffer at b says"},
		{"the first opens its queue", []*fakeBuffer{keeps(""), keeps("m"), has(1, 2)}, "a", "the buffer at b says"},
		{"the first is away", []*fakeBuffer{away, keeps("m"), has(1, 2)}, "", "the buffer at b says"},
		{"the second opens its queue", []*fakeBuffer{away, keeps(""), has(1, 2)}, "b", ""}, // until it tells the data, see Admit
		{"the data were moved", []*fakeBuffer{away, keeps("l"), has(1, 2)}, "b", ""},
		{"the data were moved, and the first begins anew", []*fakeBuffer{keeps("m"), keeps("l"), has(1, 2)}, "b", ""},
		{"the first has lost its disk", []*fakeBuffer{keeps("m"), has(1, 2), has(1, 2)}, "a", ""},
		{"the queue has gone to Kafka", []*fakeBuffer{away, owns("m", 7), has(1, 2)}, "b", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := dialAll(t, test.buffers...)
			told := ""
			seen := &Seen{Queue: "q", Of: 2, Rival: func(err error) { told = err.Error() }}
			if err := seen.Admit("a", "l", 0); err != nil {
				t.Fatal(err)
			}
			owner, err := b.Owner(t.Context(), seen)
			if err != nil {
				told = err.Error()
			}
			if owner.Address != test.owner || (err == nil) != (test.owner != "") || !strings.Contains(told, test.named) || test.named == "" && told != "" {
				t.Errorf("%q has the shard (%v), and %q is told; want %q, and %q", owner.Address, err, told, test.owner, test.named)
			}
		})
	}

	b := dialAll(t, keeps("l"), keeps("m"), has(1, 2))
	if owner, err := b.Owner(t.Context(), &Seen{Queue: "q", Of: 2}); err == nil || !strings.Contains(err.Error(), "at a and at b both have shard 0") {
		t.Errorf("%q is taken by a client that has seen nothing: %v", owner.Address, err)
	}
	if owner, err := b.Owner(t.Context(), &Seen{Queue: "q", Number: 1, Of: 2}); err != nil || owner.Address != "c" {
		t.Errorf("%q has the shard that is not in question, %v", owner.Address, err)
	}
	seen := &Seen{Queue: "q", Of: 2}
	for _, step := range []struct {
		address, life string
		epoch         uint64
		want          bool
	}{{"a", "l", 0, true}, {"b", "m", 0, false}, {"a", "l", 0, true}, {"b", "l", 0, true}, {"b", "n", 0, true}, {"a", "l", 0, false}, {"a", "k", 3, true}} {
		if err := seen.Admit(step.address, step.life, step.epoch); (err == nil) != step.want {
			t.Errorf("%+v: %v", step, err)
		}
	}
}
