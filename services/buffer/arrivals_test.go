package buffer

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// gated is a store that writes once its gate is open.
type gated struct {
	queue.Store
	gate chan struct{}
}

func (g gated) Append(entries []queue.Entry) ([]queue.Ref, error) {
	for _, e := range entries {
		if e.Kind == queue.BatchEntry {
			<-g.gate
		}
	}
	return g.Store.Append(entries)
}

// TestBatchesThatWaitAreBounded has a disk that does not write, a window that is full, and ten
// streams that each bring a batch of 15 MiB: four wait, the others are told to come again, and
// then all get through.
func TestBatchesThatWaitAreBounded(t *testing.T) {
	const streams, size = 10, 15 << 20
	gate := make(chan struct{})
	r := start(t, t.TempDir(), func(c *config.Queue, d *Deps) {
		c.Memory.Bytes = 1 << 20
		store := memstore.New()
		d.OpenStore = func(_ string, o queue.StoreOptions) (queue.Store, error) {
			opened, err := store.Reopen(o)
			return gated{opened, gate}, err
		}
	})
	first := r.appendStream()
	r.appended(first, batch("first", 0, 1, string(make([]byte, 2<<20)))) // larger than the window: it is full

	type answer struct {
		stream spillwayv1.BufferService_AppendClient
		batch  *spillwayv1.Batch
		m      *spillwayv1.AppendResponse
		err    error
	}
	answers := make(chan answer, streams)
	var refused []answer
	for i := range streams {
		a := answer{stream: r.appendStream(), batch: batch(fmt.Sprintf("t%d", i), 0, 1, string(make([]byte, size)))}
		r.send(a.stream, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: a.batch}})
		go func() {
			for a.m.GetAppended() == nil && a.err == nil { // safe offsets come as well
				a.m, a.err = a.stream.Recv()
			}
			answers <- a
		}()
		// One after the other: a connection that a slow machine does not finish many messages on
		// at once is cut.
		if i < arrivalBytes/size {
			for r.service.arrivals.bytes.Load() < int64(i+1)*size {
				time.Sleep(time.Millisecond)
			}
		} else {
			a := <-answers
			if a.err != nil {
				t.Fatal(a.err)
			}
			checkStatus(t, "a batch above the bound", rpc.StatusError(a.m.GetAppended().Status), codes.ResourceExhausted, "QUEUE_FULL")
			refused = append(refused, a)
		}
	}
	close(gate)
	for range arrivalBytes / size {
		if a := <-answers; a.err != nil || a.m.GetAppended().Status != nil {
			t.Errorf("a batch that waited: %v, %v", a.m, a.err)
		}
	}
	for _, a := range refused {
		if got := r.appended(a.stream, a.batch); got.Status != nil {
			t.Errorf("a batch that comes again: %v", got)
		}
	}
}
