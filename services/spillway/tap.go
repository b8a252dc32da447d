package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

func newTap() *cobra.Command {
	t := bufferTarget()
	request := &spillwayv1.TapRecordsRequest{}
	var bytesPerSecond, recordBytes config.ByteSize
	var limit int64
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "tap QUEUE",
		Short: "Shows records of a queue as they are appended",
		Long: `Shows what is appended to a queue from now on, a line each: topic/partition@offset, time, key and value, or JSON with
-o json. It ends with Ctrl-C, --limit or --for. Needs the role tap, and is noted in the audit log.

--filter is an expression of CEL (https://cel.dev) that is true for the records to show. It knows topic, partition, offset,
timestamp, key, value (text), headers (headers["h"], "h" in headers) and json, the value taken apart (json.level == "ERROR").

A tap never holds up the queue: beyond its rate records are left out, and what it does not get to is missed. Both are
counted, and said at the end.`,
		Example: "  spillway tap logs --topics 'orders*'\n  spillway tap logs --filter 'json.level == \"ERROR\" && headers[\"host\"].startsWith(\"web\")' --limit 10\n" +
			"  spillway tap logs --partitions 3 --sample 100 --for 1m -o json",
		Args: oneName("a queue"),
	}
	run := t.run(func(c *call, args []string) error {
		request.Queue, request.BytesPerSecond, request.RecordBytes = args[0], int64(bytesPerSecond), int32(min(recordBytes, 1<<30))
		return c.tap(request, limit, duration, cmd.ErrOrStderr())
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 || duration < 0 {
			return &usageError{fmt.Errorf("--limit %d, --for %s: want 0, which is no limit, or more", limit, duration)}
		}
		return run(cmd, args)
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(queueNames)
	f := cmd.Flags()
	f.StringSliceVar(&request.Topics, "topics", nil, "globs of topics, such as 'orders*'; all if there is none")
	f.Int32SliceVar(&request.Partitions, "partitions", nil, "numbers of partitions; all if there is none")
	f.StringVar(&request.Filter, "filter", "", "expression of CEL")
	f.Int32Var(&request.Sample, "sample", 1, "show one of so many records that match")
	f.Int32Var(&request.RecordsPerSecond, "rate", 100, "at most so many records a second; 10000 at most")
	f.TextVar(&bytesPerSecond, "bytes", config.MiB, "at most so many bytes of records a second; 16MiB at most")
	f.TextVar(&recordBytes, "record-bytes", 64*config.KiB, "cut larger records to this; 1MiB at most")
	f.Int64Var(&limit, "limit", 0, "end after so many records; 0: never")
	f.DurationVar(&duration, "for", 0, "end after this time; 0: never")
	return cmd
}

// tap prints records of all buffers until there are limit of them, the time is over, or the
// command is interrupted, and what was left out. The rate is divided among the buffers.
func (c *call) tap(request *spillwayv1.TapRecordsRequest, limit int64, duration time.Duration, stderr io.Writer) error {
	ctx, cancel := context.WithCancel(c.ctx)
	n := len(c.all)
	request.RecordsPerSecond = (request.RecordsPerSecond + int32(n) - 1) / int32(n)
	request.BytesPerSecond = (request.BytesPerSecond + int64(n) - 1) / int64(n)
	came := make(chan tapAnswer)
	var wg sync.WaitGroup
	for i, conn := range c.all {
		wg.Go(func() { tapOne(ctx, i, conn, request, came) })
	}
	defer wg.Wait()
	defer cancel()
	first := time.AfterFunc(c.timeout, cancel)
	defer first.Stop()
	if duration > 0 {
		defer time.AfterFunc(duration, cancel).Stop()
	}
	counts, strange := make([]*spillwayv1.TapCounts, n), make(map[int]bool)
	answered, shown := 0, int64(0)
	for {
		var a tapAnswer
		select {
		case a = <-came:
		case <-ctx.Done():
			a.err = ctx.Err()
		}
		address := rpc.Address(c.all[a.from])
		switch {
		case a.err != nil && ctx.Err() != nil && answered < n && c.ctx.Err() == nil:
			silent := slices.IndexFunc(counts, func(x *spillwayv1.TapCounts) bool { return x == nil })
			return fmt.Errorf("no answer from the buffer at %s within %s", rpc.Address(c.all[silent]), c.timeout)
		case a.err != nil && ctx.Err() != nil:
			return c.tapped(counts, stderr)
		case rpc.Reason(a.err) == "NOT_OWNER" && n > 1 && len(strange) < n-1:
			strange[a.from] = true
			a.m = &spillwayv1.TapRecordsResponse{Counts: &spillwayv1.TapCounts{}}
		case errors.Is(a.err, io.EOF):
			return fmt.Errorf("the buffer at %s ended the tap", address)
		case a.err != nil:
			return rpc.Explain(a.err, c.service, address)
		}
		if counts[a.from] == nil {
			if answered++; answered == n {
				first.Stop()
			}
		}
		counts[a.from] = a.m.Counts
		for _, r := range a.m.Records {
			if err := c.record(r); err != nil {
				return err
			}
			if shown++; shown == limit {
				return c.tapped(counts, stderr)
			}
		}
	}
}

// tapAnswer is what one of several buffers answers to a tap.
type tapAnswer struct {
	from int
	m    *spillwayv1.TapRecordsResponse
	err  error
}

// tapOne passes on what one buffer answers, until ctx ends or an error.
func tapOne(ctx context.Context, from int, conn *grpc.ClientConn, request *spillwayv1.TapRecordsRequest, to chan<- tapAnswer) {
	stream, err := spillwayv1.NewBufferAdminServiceClient(conn).TapRecords(ctx, request)
	for {
		a := tapAnswer{from: from, err: err}
		if err == nil {
			a.m, a.err = stream.Recv()
		}
		select {
		case to <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// tapped says what was left out, by all buffers.
func (c *call) tapped(all []*spillwayv1.TapCounts, stderr io.Writer) error {
	if !slices.ContainsFunc(all, func(x *spillwayv1.TapCounts) bool { return x != nil }) {
		return nil
	}
	n := &spillwayv1.TapCounts{}
	for _, x := range all {
		if x != nil {
			shards.Add(n, x)
			n.FilterError = cmp.Or(n.FilterError, x.FilterError)
		}
	}
	text := fmt.Sprintf("%d records seen, %d match", n.Seen, n.Matched)
	if n.Limited > 0 {
		text += fmt.Sprintf(", %d of them left out: --rate and --bytes are reached", n.Limited)
	}
	if n.Missed > 0 {
		text += fmt.Sprintf("; %d missed: more was appended than the tap, or who reads it, gets through", n.Missed)
	}
	if n.FilterErrors > 0 {
		text += fmt.Sprintf("; the filter failed for %d: %s", n.FilterErrors, n.FilterError)
	}
	_, err := fmt.Fprintln(stderr, text)
	return err
}

// tappedRecord is a line of JSON. What is not UTF-8 is in base64, under another name.
type tappedRecord struct {
	Topic       string    `json:"topic"`
	Partition   int32     `json:"partition"`
	Offset      int64     `json:"offset"`
	Timestamp   time.Time `json:"timestamp"`
	Key         *string   `json:"key"`
	KeyBase64   []byte    `json:"key_base64,omitempty"`
	Value       *string   `json:"value"`
	ValueBase64 []byte    `json:"value_base64,omitempty"`
	Headers     []header  `json:"headers"`
	CutBytes    int64     `json:"cut_bytes,omitempty"`
	Error       string    `json:"error,omitempty"` // why a batch cannot be read
}

type header struct {
	Name        string  `json:"name"`
	Value       *string `json:"value"`
	ValueBase64 []byte  `json:"value_base64,omitempty"`
}

// record prints one record.
func (c *call) record(p *spillwayv1.PeekedRecord) error {
	r := p.Record
	at := time.UnixMilli(r.GetTimestampMs())
	if c.output == "json" {
		out := tappedRecord{Topic: p.Source.Topic, Partition: p.Source.Partition, Offset: p.Offset, Timestamp: at.UTC(), CutBytes: p.CutBytes, Error: p.Error, Headers: []header{}}
		if r != nil {
			out.Key, out.KeyBase64 = textOrBytes(r.Key)
			out.Value, out.ValueBase64 = textOrBytes(r.Value)
		}
		for _, h := range r.GetHeaders() {
			value, b := textOrBytes(h.Value)
			out.Headers = append(out.Headers, header{strings.ToValidUTF8(string(h.Name), "\uFFFD"), value, b})
		}
		return json.NewEncoder(c.out).Encode(out)
	}
	if p.Error != "" {
		_, err := fmt.Fprintf(c.out, "%s/%d@%d to %d cannot be read: %s\n", p.Source.Topic, p.Source.Partition, p.Offset, p.NextOffset-1, p.Error)
		return err
	}
	cut := ""
	if p.CutBytes > 0 {
		cut = fmt.Sprintf(" … %d bytes more", p.CutBytes)
	}
	_, err := fmt.Fprintf(c.out, "%s/%d@%d %s %s %s%s\n", p.Source.Topic, p.Source.Partition, p.Offset, at.Local().Format(time.DateTime), printable(r.GetKey()), printable(r.GetValue()), cut)
	return err
}

func textOrBytes(b []byte) (*string, []byte) {
	if b == nil || !utf8.Valid(b) {
		return nil, b
	}
	s := string(b)
	return &s, nil
}

// printable is text for a terminal, which must not do what a record says.
func printable(b []byte) string {
	if b == nil {
		return "-"
	}
	q := strconv.Quote(string(b))
	if q = q[1 : len(q)-1]; q == "" {
		return `""`
	}
	return strings.ReplaceAll(q, `\"`, `"`)
}
