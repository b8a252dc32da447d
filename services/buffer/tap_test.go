package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// tapOf opens a tap, which is at work when tapOf returns.
func (r *running) tapOf(request *spillwayv1.TapRecordsRequest) (spillwayv1.BufferAdminService_TapRecordsClient, error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	r.t.Cleanup(cancel)
	stream, err := spillwayv1.NewBufferAdminServiceClient(r.conn).TapRecords(ctx, request)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = stream.Recv()
	return stream, err
}

// TestTap shows what is appended, once, of the topics that are wanted.
func TestTap(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.assign(in, "t")
	r.assign(in, "other")
	r.appended(in, batch("t", 0, 5, "before"))
	stream, err := r.tapOf(&spillwayv1.TapRecordsRequest{Queue: "c", Topics: []string{"t*"}, Partitions: []int32{0, 7}, Filter: `offset != 6 && value == "v"`, RecordBytes: 10})
	if err != nil {
		t.Fatal(err)
	}
	malformed := batch("t", 20, 30, "v")
	malformed.Payload = []byte{0xff}
	malformed.PayloadCrc32C = recordbatch.CRC(malformed.Payload)
	for _, b := range []*spillwayv1.Batch{batch("t", 5, 10, "v"), batch("t", 5, 10, "v"), batch("other", 0, 5, "v"), batch("t", 15, 20, "v") /* a gap */, batch("t", 10, 11, "x"),
		batch("t", 11, 12, "v"), batch("t", 12, 20, "x"), malformed} {
		r.appended(in, b)
	}
	var offsets []int64
	var last *spillwayv1.TapRecordsResponse
	for last = new(spillwayv1.TapRecordsResponse); last.Counts.GetSeen() < 15 || !slices.Contains(offsets, 20); {
		if last, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		for _, rec := range last.Records {
			offsets = append(offsets, rec.Offset)
			if (rec.Error != "") != (rec.Offset == 20) || rec.Source.Topic != "t" {
				t.Errorf("%v", rec)
			}
		}
	}
	if want := []int64{5, 7, 8, 9, 11, 20}; !slices.Equal(offsets, want) || last.Counts.Matched != 5 || last.Counts.Missed != 0 || last.Counts.Limited != 0 {
		t.Errorf("%v with %v, want %v", offsets, last.Counts, want)
	}

	for name, request := range map[string]*spillwayv1.TapRecordsRequest{
		"glob": {Topics: []string{"["}}, "rate": {RecordsPerSecond: 10_001}, "bytes": {BytesPerSecond: -1}, "sample": {Sample: -1}, "record": {RecordBytes: 2 << 20},
		"syntax": {Filter: "value =="}, "type": {Filter: "offset + 1"}, "unknown": {Filter: "nothing"}, "long": {Filter: strings.Repeat(" ", 5000)},
	} {
		request.Queue = "c"
		_, err := r.tapOf(request)
		checkStatus(t, name, err, codes.InvalidArgument, "MALFORMED")
	}
	_, err = r.tapOf(&spillwayv1.TapRecordsRequest{Queue: "none"})
	checkStatus(t, "no queue", err, codes.NotFound, "QUEUE_NOT_FOUND")
}

// TestTapsDoNotWait has callers that do not read while much is appended: no append waits for them,
// what they miss is counted, and there is no fifth.
func TestTapsDoNotWait(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.assign(in, "t")
	var streams []spillwayv1.BufferAdminService_TapRecordsClient
	for range maxTaps {
		stream, err := r.tapOf(&spillwayv1.TapRecordsRequest{Queue: "c", RecordsPerSecond: maxTapRecords, BytesPerSecond: maxTapBytes, RecordBytes: maxTapRecordBytes})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	_, err := r.tapOf(&spillwayv1.TapRecordsRequest{Queue: "c"})
	checkStatus(t, "one more", err, codes.ResourceExhausted, "TOO_MANY")
	const batches = 200
	value := strings.Repeat("x", 128<<10)
	for i := range int64(batches) {
		if a := r.appended(in, batch("t", 2*i, 2*i+2, value)); a.Status != nil {
			t.Fatal(a.Status)
		}
	}
	for _, stream := range streams {
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if c := m.Counts; c.Seen+c.Missed == 2*batches {
				if c.Missed == 0 || c.Matched != c.Seen || c.Sent+c.Limited != c.Matched {
					t.Errorf("%v", c)
				}
				break
			}
		}
	}
	if err := streams[0].CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.stop() // ends the others
}

// TestTapIsBounded looks at what a tap holds, sends and how much it works.
func TestTapIsBounded(t *testing.T) {
	payload := func(records int, value string) queue.Batch {
		b := batch("t", 0, int64(records), value)
		return queue.Batch{Partition: queue.Partition{Topic: "t"}, Range: queue.Range{Next: int64(records)}, Records: int32(records), Payload: b.Payload}
	}
	open := func(r *spillwayv1.TapRecordsRequest) *tap {
		r.Queue = "c"
		x, err := newTap(r)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	x := open(&spillwayv1.TapRecordsRequest{})
	large := payload(1, strings.Repeat("x", tapBytes+1)) // alone, any size is taken
	x.offer("c", large)
	x.offer("c", payload(3, "x"))
	x.offer("elsewhere", payload(3, "x"))
	if n := len(x.batches); n != 1 || x.missed.Load() != 3 || x.waiting.Load() != int64(len(large.Payload)) {
		t.Errorf("%d batches, %d missed, %d bytes", n, x.missed.Load(), x.waiting.Load())
	}

	synctest.Test(t, func(t *testing.T) {
		x := open(&spillwayv1.TapRecordsRequest{RecordsPerSecond: 10, Sample: 3, RecordBytes: 2})
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var sent []*spillwayv1.PeekedRecord
		var counts *spillwayv1.TapCounts
		done := make(chan error)
		go func() {
			done <- x.run(ctx, new(sync.Mutex), func(m *spillwayv1.TapRecordsResponse) error {
				mu.Lock()
				defer mu.Unlock()
				sent, counts = append(sent, m.Records...), m.Counts
				return nil
			}, func() error { return nil })
		}()
		x.offer("c", payload(60, "abc"))
		synctest.Wait()
		mu.Lock()
		if len(sent) != 10 || counts.Limited != 10 || counts.Matched != 60 || sent[1].Offset != 3 || string(sent[0].Record.Value) != "ab" || sent[0].CutBytes != 1 {
			t.Errorf("%d records, the first is %v; %v", len(sent), sent[0], counts)
		}
		mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		x.offer("c", payload(3, "abc"))
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(sent) != 11 || counts.Sent != 11 {
			t.Errorf("a second later: %d records, %v", len(sent), counts)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestTapFilter(t *testing.T) {
	record := &recordbatch.Record{TimestampMs: 1_772_323_200_000, Key: []byte("k1"), Value: []byte(`{"level": "ERROR", "n": 3, "user": {"id": "u1"}}`),
		Headers: []recordbatch.Header{{Name: []byte("host"), Value: []byte("web-1")}, {Name: []byte("host"), Value: []byte("web-2")}}}
	p := queue.Partition{Topic: "orders", Number: 3}
	for expression, want := range map[string]string{
		`topic == "orders" && partition == 3 && offset == 7`: "true",
		`key.startsWith("k") && value.contains("ERROR")`:     "true",
		`value.matches("level.*WARN")`:                       "false",
		`headers["host"] == "web-1"`:                         "true",
		`"host" in headers && !("x" in headers)`:             "true",
		`headers["x"] == "y"`:                                "no such key",
		`has(headers.x) && headers.x == "y"`:                 "false",
		`json.level == "ERROR" && json.n > 2.0`:              "true",
		`json.user.id == "u1"`:                               "true",
		`json.nothing == 1`:                                  "no such key",
		`timestamp > timestamp("2026-01-01T00:00:00Z")`:      "true",
		`json`: "want true or false",
	} {
		f, err := newTapFilter(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		ok, err := f.matches(p, 7, record)
		if got := fmt.Sprint(ok, err); err == nil && fmt.Sprint(ok) != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%s: %v, %v, want %s", expression, ok, err, want)
		}
	}
	f, err := newTapFilter(strings.Repeat(`value.matches("b.*b.*b.*c") || `, 9) + "false")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.matches(p, 7, &recordbatch.Record{Value: []byte(strings.Repeat("a", 16<<20))}); err == nil || !strings.Contains(err.Error(), "cost") {
		t.Errorf("a large record for an expensive filter: %v", err)
	}
	if _, err := f.matches(p, 7, &recordbatch.Record{Value: []byte("\xff\xfe")}); err != nil {
		t.Error(err)
	}
}
