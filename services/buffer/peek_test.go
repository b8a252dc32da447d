package buffer

import (
	"bytes"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestPeekLooksBehind has a batch that nobody can decode, a record of 5 MiB and one of 12 MiB,
// and small ones behind. A client with gRPC's own bound of 4 MiB, as grpcurl has it, sees all of
// them.
func TestPeekLooksBehind(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.assign(in, "t")
	malformed := batch("t", 0, 10, "v")
	malformed.Payload = bytes.Repeat([]byte{0xff}, 100)
	malformed.PayloadCrc32C = recordbatch.CRC(malformed.Payload)
	wrongCodec := batch("t", 10, 11, "v")
	wrongCodec.Codec = spillwayv1.Codec_CODEC_ZSTD
	large := batch("t", 11, 12, string(make([]byte, 5<<20)))
	headers := recordbatch.AppendRecord(nil, &recordbatch.Record{Key: make([]byte, 3<<20), Value: make([]byte, 6<<20),
		Headers: []recordbatch.Header{{Name: []byte("h"), Value: make([]byte, 3<<20)}}})
	larger := &spillwayv1.Batch{Source: source("t"), FirstOffset: 12, NextOffset: 13, RecordCount: 1, Codec: spillwayv1.Codec_CODEC_NONE,
		PayloadCrc32C: recordbatch.CRC(headers), Payload: headers}
	for _, b := range []*spillwayv1.Batch{malformed, wrongCodec, large, larger, batch("t", 13, 20, "small")} {
		r.appended(in, b)
	}

	conn, err := grpc.NewClient(r.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	admin := spillwayv1.NewBufferAdminServiceClient(conn)
	peek := func(request *spillwayv1.PeekRecordsRequest) []*spillwayv1.PeekedRecord {
		t.Helper()
		request.Subscription, request.Limit = "c/all", 5
		response, err := admin.PeekRecords(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		return response.Records
	}

	got := peek(&spillwayv1.PeekRecordsRequest{})
	if len(got) != 3 || got[0].Error == "" || got[0].Offset != 0 || got[0].NextOffset != 10 || got[1].Error == "" || got[1].Offset != 10 {
		t.Fatalf("the first answer has %d records: %.300v", len(got), got)
	}
	if l := got[2]; l.Offset != 11 || len(l.Record.Value) > peekBytes || int64(len(l.Record.Value))+l.CutBytes != 5<<20 {
		t.Errorf("the large record: offset %d, %d bytes and %d cut", l.Offset, len(l.Record.GetValue()), l.CutBytes)
	}

	got = peek(&spillwayv1.PeekRecordsRequest{Source: &spillwayv1.SourcePartition{Topic: "t"}, FromOffset: 12})
	if l := got[0]; len(got) != 1 || l.Offset != 12 || len(l.Record.Headers) != 0 || len(l.Record.Value)+len(l.Record.Key) > peekBytes || l.CutBytes < 11<<20 {
		t.Errorf("the record of 12 MiB: %d records, offset %d, key %d, value %d, %d cut", len(got), l.Offset, len(l.Record.Key), len(l.Record.Value), l.CutBytes)
	}

	got = peek(&spillwayv1.PeekRecordsRequest{Source: source("t"), FromOffset: 15})
	if len(got) != 5 || got[0].Offset != 15 || got[4].Offset != 19 || string(got[0].Record.Value) != "small" {
		t.Errorf("behind them: %v", got)
	}
	for name, request := range map[string]*spillwayv1.PeekRecordsRequest{
		"no source":      {Subscription: "c/all", FromOffset: 5},
		"below 0":        {Subscription: "c/all", Source: source("t"), FromOffset: -1},
		"too many":       {Subscription: "c/all", Limit: 1001},
		"less than none": {Subscription: "c/all", Limit: -1},
	} {
		_, err := admin.PeekRecords(t.Context(), request)
		checkStatus(t, name, err, codes.InvalidArgument, "MALFORMED")
	}
	if got := peek(&spillwayv1.PeekRecordsRequest{Source: source("elsewhere")}); len(got) != 0 {
		t.Errorf("a partition that is not there has %v", got)
	}
}
