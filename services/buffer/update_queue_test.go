package buffer

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestUpdateQueue raises disk.records and disk.bytes while the queue is full: the batch that was
// refused is taken, and the bounds are there after a restart.
func TestUpdateQueue(t *testing.T) {
	dir := t.TempDir()
	small := func(q *config.Queue, _ *Deps) { q.Disk.Records = 10 }
	r := start(t, dir, small)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	if got := r.appended(in, batch("t", 10, 11, "v")); codes.Code(got.Status.GetCode()) != codes.ResourceExhausted {
		t.Fatalf("%v, want a full queue", got)
	}
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	update := func(bytes, records *int64) (*spillwayv1.Queue, error) {
		got, err := admin.UpdateQueue(t.Context(), &spillwayv1.UpdateQueueRequest{Name: "c", DiskBytes: bytes, DiskRecords: records})
		return got.GetQueue(), err
	}
	for _, bad := range [][2]*int64{{nil, nil}, {new(int64), nil}, {nil, new(int64)}} {
		if q, err := update(bad[0], bad[1]); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v, %v", q, err)
		}
	}
	records, bytes := int64(11), int64(300<<20)
	if q, err := update(&bytes, &records); err != nil || q.DiskBytesLimit != bytes || q.DiskRecordsLimit != 11 || q.ConfiguredDiskRecords != 10 || q.ConfiguredDiskBytes != 1<<40 {
		t.Fatalf("%v, %v", q, err)
	}
	if got := r.appended(in, batch("t", 10, 11, "v")); got.Status != nil {
		t.Fatalf("%v, after the bound was raised", got)
	}
	r.stop()
	r = start(t, dir, small)
	got, err := spillwayv1.NewBufferAdminServiceClient(r.conn).GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: "c"})
	if err != nil || got.Queue.DiskBytesLimit != bytes || got.Queue.DiskRecordsLimit != 11 {
		t.Fatalf("%v, %v after a restart", got, err)
	}
}
