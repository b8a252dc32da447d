package buffer

import (
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	maxTaps = 4
	// tapBytes bounds the payloads that wait for a tap, beside one of any size. They may be gone
	// from the window already.
	tapBytes = 4 << 20
	// tapBatches bounds their number.
	tapBatches = 1024
	// tapShare is the part of its time that a tap works: one in so many. The rest it pauses, so
	// that all taps together take one core at most.
	tapShare = 4
	// tapMessage is how large a message gets before it is sent, beside one record.
	tapMessage = 256 << 10

	maxTapRecords     = 10_000
	maxTapBytes       = 16 << 20
	maxTapRecordBytes = 1 << 20
)

// taps are those of all queues. The zero value is ready for use.
type taps struct {
	list atomic.Pointer[[]*tap] // replaced as a whole; nil: none
	mu   sync.Mutex             // held to replace it
	// work is held by the one tap that looks into a batch, which may be large once decompressed.
	work sync.Mutex
}

// offer hands a batch that was appended to the taps that want it. It never waits.
func (t *taps) offer(queueName string, b queue.Batch) {
	list := t.list.Load()
	if list == nil {
		return
	}
	for _, x := range *list {
		x.offer(queueName, b)
	}
}

// add is undone by remove.
func (t *taps) add(x *tap) (remove func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*tap
	if before := t.list.Load(); before != nil {
		list = slices.Clone(*before)
	}
	if len(list) >= maxTaps {
		return nil, fmt.Errorf("%w taps: there are %d, which is the most", queue.ErrTooMany, maxTaps)
	}
	list = append(list, x)
	t.list.Store(&list)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		list := slices.DeleteFunc(slices.Clone(*t.list.Load()), func(o *tap) bool { return o == x })
		if t.list.Store(&list); len(list) == 0 {
			t.list.Store(nil)
		}
	}, nil
}

// tap is one caller of TapRecords.
type tap struct {
	request *spillwayv1.TapRecordsRequest // with its defaults
	filter  *tapFilter                    // nil: all
	batches chan queue.Batch
	waiting atomic.Int64 // bytes of payload in batches
	missed  atomic.Int64 // records

	// Of the goroutine that runs.
	seen, matched, sent, limited, failed int64 // as in TapCounts
	failure                              string
	second                               time.Time // since when records and bytes count
	passed                               int32     // records since second
	bytes                                int64     // of them
	out                                  []*spillwayv1.PeekedRecord
}

// newTap checks a request and puts its defaults in.
func newTap(r *spillwayv1.TapRecordsRequest) (*tap, error) {
	for _, f := range []struct {
		name        string
		value       int64
		most, usual int64
		set         func(int64)
	}{
		{"sample", int64(r.Sample), math.MaxInt32, 1, func(n int64) { r.Sample = int32(n) }},
		{"records_per_second", int64(r.RecordsPerSecond), maxTapRecords, 100, func(n int64) { r.RecordsPerSecond = int32(n) }},
		{"bytes_per_second", r.BytesPerSecond, maxTapBytes, 1 << 20, func(n int64) { r.BytesPerSecond = n }},
		{"record_bytes", int64(r.RecordBytes), maxTapRecordBytes, 64 << 10, func(n int64) { r.RecordBytes = int32(n) }},
	} {
		if f.value < 0 || f.value > f.most {
			return nil, fmt.Errorf("%w %s %d: want 1 to %d, or 0 for %d", queue.ErrInvalid, f.name, f.value, f.most, f.usual)
		}
		if f.value == 0 {
			f.set(f.usual)
		}
	}
	for _, glob := range r.Topics {
		if _, err := path.Match(glob, ""); err != nil {
			return nil, fmt.Errorf("%w topics: %.200q is no glob", queue.ErrInvalid, glob)
		}
	}
	filter, err := newTapFilter(r.Filter)
	if err != nil {
		return nil, err
	}
	return &tap{request: r, filter: filter, batches: make(chan queue.Batch, tapBatches)}, nil
}

func (x *tap) wants(queueName string, p queue.Partition) bool {
	r := x.request
	return r.Queue == queueName && (len(r.Partitions) == 0 || slices.Contains(r.Partitions, p.Number)) &&
		(len(r.Topics) == 0 || slices.ContainsFunc(r.Topics, func(glob string) bool {
			ok, err := path.Match(glob, p.Topic)
			return ok && err == nil
		}))
}

func (x *tap) offer(queueName string, b queue.Batch) {
	if !x.wants(queueName, b.Partition) {
		return
	}
	n := int64(len(b.Payload))
	if all := x.waiting.Add(n); all <= tapBytes || all == n {
		select {
		case x.batches <- b:
			return
		default:
		}
	}
	x.waiting.Add(-n)
	x.missed.Add(int64(b.Records))
}

// run shows records until ctx ends, send fails, or going returns an error.
func (x *tap) run(ctx context.Context, work sync.Locker, send func(*spillwayv1.TapRecordsResponse) error, going func() error) error {
	if err := x.flush(send); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := going(); err != nil {
				return err
			}
			if err := x.flush(send); err != nil {
				return err
			}
		case b := <-x.batches:
			work.Lock()
			began := time.Now()
			x.look(b, began)
			took := time.Since(began)
			work.Unlock()
			x.waiting.Add(-int64(len(b.Payload)))
			if err := x.flush(send); err != nil {
				return err
			}
			if !sleep(ctx, took*(tapShare-1)) {
				return ctx.Err()
			}
		}
	}
}

// sleep says whether the time has passed.
func sleep(ctx context.Context, d time.Duration) bool {
	if d < time.Millisecond {
		return true // a timer costs more
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// look collects what a batch has to show. A batch that cannot be read is named.
func (x *tap) look(b queue.Batch, now time.Time) {
	if now.Sub(x.second) >= time.Second {
		x.second, x.passed, x.bytes = now, 0, 0
	}
	if err := eachRecord(&queue.Lease{Batch: b}, func(offset int64, r *recordbatch.Record) bool {
		x.record(b.Partition, offset, r)
		return true
	}); err != nil {
		x.out = append(x.out, unreadable(b, err))
	}
}

func (x *tap) record(p queue.Partition, offset int64, r *recordbatch.Record) {
	x.seen++
	if x.filter != nil {
		ok, err := x.filter.matches(p, offset, r)
		if err != nil {
			x.failed++
			x.failure = fmt.Sprintf("%.500s", err)
		}
		if !ok {
			return
		}
	}
	x.matched++
	if (x.matched-1)%int64(x.request.Sample) != 0 {
		return
	}
	size := min(int64(r.Size()), int64(x.request.RecordBytes))
	if x.passed >= x.request.RecordsPerSecond || x.passed > 0 && x.bytes+size > x.request.BytesPerSecond {
		x.limited++
		return
	}
	x.passed++
	x.bytes += size
	shown := &spillwayv1.PeekedRecord{Source: fromPartition(p), Offset: offset, Record: fromRecord(r)}
	shown.CutBytes = cutRecord(shown.Record, r.Size()-int(x.request.RecordBytes))
	x.out = append(x.out, shown)
}

// flush sends what was collected, in messages of a moderate size, with the counts.
func (x *tap) flush(send func(*spillwayv1.TapRecordsResponse) error) error {
	for first := true; first || len(x.out) > 0; first = false {
		n, size := 0, 0
		for n < len(x.out) && (n == 0 || size < tapMessage) {
			size += proto.Size(x.out[n])
			n++
		}
		x.sent += int64(n)
		counts := &spillwayv1.TapCounts{Seen: x.seen, Matched: x.matched, Sent: x.sent, Limited: x.limited, Missed: x.missed.Load(), FilterErrors: x.failed, FilterError: x.failure}
		if err := send(&spillwayv1.TapRecordsResponse{Records: x.out[:n], Counts: counts}); err != nil {
			return err
		}
		x.out = x.out[n:]
	}
	x.out = nil
	return nil
}

// TapRecords implements BufferAdminService.
func (a *admin) TapRecords(r *spillwayv1.TapRecordsRequest, stream spillwayv1.BufferAdminService_TapRecordsServer) error {
	going := func() error {
		_, err := a.s.openShards(r.Queue) // also ends the tap when the service stops
		return toStatus(err)
	}
	if err := going(); err != nil {
		return err
	}
	x, err := newTap(r)
	if err != nil {
		return toStatus(err)
	}
	remove, err := a.s.taps.add(x)
	if err != nil {
		return toStatus(err)
	}
	defer remove()
	return streamError(x.run(stream.Context(), &a.s.taps.work, stream.Send, going))
}
