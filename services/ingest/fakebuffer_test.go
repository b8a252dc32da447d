package ingest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// fakeBuffer keeps what is appended in memory. All of it is safe at once.
type fakeBuffer struct {
	spillwayv1.UnimplementedBufferServiceServer
	t    *testing.T
	addr string

	mu         sync.Mutex
	life       string                            // of its data
	partitions map[topicPartition]*fakePartition // of the newest incarnation
	lives      map[topicPartition]uint32
	refuse     error                       // answer to batches
	refused    int                         // so many
	held       map[int]bool                // partitions whose batches are not answered
	late       []*spillwayv1.AppendRequest // those, in order
	lateBytes  int                         // the most that was held at a time
	breakAfter int                         // batches until the stream is broken; 0: never
	streams    int
	refetch    *spillwayv1.Refetch   // asked for when a stream opens
	refetches  []*spillwayv1.Refetch // before that one
	finds      []*spillwayv1.FindOffset
	found      map[uint64]*spillwayv1.FoundOffset
	refetched  fakePartition  // the answers to it
	refuseOnce error          // answer to the first of them
	accepted   map[int64]bool // where those begin that were accepted
	mayWait    map[int64]bool // what was said of batches, by where they end
	committed  []*int64       // as told at assignments
	wants      bool           // wants_retention
	retention  []*spillwayv1.SourceRetention
	keeps      bool     // it keeps pauses
	paused     []string // sources that are
	hearing    []spillwayv1.BufferService_AppendServer
	sendMu     sync.Mutex // of hearing
}

type fakePartition struct {
	start, next int64
	records     []storedRecord
	settled     []*spillwayv1.SettleRange
	known       []*spillwayv1.Fingerprint // the newest first
}

type storedRecord struct {
	offset, timestamp int64
	key, value        []byte
	headers           []recordbatch.Header
}

func startBuffer(t *testing.T, more ...func(grpc.ServiceRegistrar)) *fakeBuffer {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeBuffer{t: t, addr: lis.Addr().String(), partitions: make(map[topicPartition]*fakePartition), lives: make(map[topicPartition]uint32), accepted: make(map[int64]bool), found: make(map[uint64]*spillwayv1.FoundOffset), mayWait: make(map[int64]bool)}
	server := rpc.NewServer(slog.New(slog.DiscardHandler))
	spillwayv1.RegisterBufferServiceServer(server.GRPC, f)
	for _, register := range more {
		register(server.GRPC)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, lis) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fakeBuffer) Append(stream spillwayv1.BufferService_AppendServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.streams++
	life := f.life
	opened := &spillwayv1.AppendOpened{Life: life, WantsRetention: f.wants, KeepsPauses: f.keeps, PausedSources: f.paused}
	if f.keeps && first.GetOpen().GetHearsPauses() {
		f.hearing = append(f.hearing, stream)
	}
	f.mu.Unlock()
	send := func(m *spillwayv1.AppendResponse) error {
		f.sendMu.Lock()
		defer f.sendMu.Unlock()
		return stream.Send(m)
	}
	defer func() {
		f.sendMu.Lock()
		defer f.sendMu.Unlock()
		f.set(func() {
			f.hearing = slices.DeleteFunc(f.hearing, func(s spillwayv1.BufferService_AppendServer) bool { return s == stream })
		})
	}()
	if err := send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	f.mu.Lock()
	refetch, refetches, finds := f.refetch, f.refetches, f.finds
	f.mu.Unlock()
	for _, refetch := range refetches {
		if err := send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Refetch{Refetch: refetch}}); err != nil {
			return err
		}
	}
	for _, find := range finds {
		if err := send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_FindOffset{FindOffset: find}}); err != nil {
			return err
		}
	}
	if refetch != nil {
		if err := send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Refetch{Refetch: refetch}}); err != nil {
			return err
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if first.GetOpen().GetQueue() == "stuck" && m.GetBatch() != nil {
			<-stream.Context().Done()
			return nil
		}
		if p := m.GetPause(); p != nil {
			f.pause(p)
			continue
		}
		for _, m := range f.due(m) {
			for _, answer := range f.handle(m) {
				if err := send(answer); err != nil {
					return err
				}
			}
		}
		f.mu.Lock()
		broken := f.breakAfter == -1
		if broken {
			f.breakAfter = 0
		}
		f.mu.Unlock()
		if broken {
			return status.Error(codes.Unavailable, "broken by the test")
		}
	}
}

// pause keeps a pause, and tells everybody.
func (f *fakeBuffer) pause(p *spillwayv1.PauseSourceEverywhere) {
	f.sendMu.Lock()
	defer f.sendMu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = slices.DeleteFunc(slices.Clone(f.paused), func(s string) bool { return s == p.Source })
	if p.Paused {
		f.paused = append(f.paused, p.Source)
	}
	for _, s := range f.hearing {
		_ = s.Send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_PausedSources{PausedSources: &spillwayv1.PausedSources{Sources: f.paused}}})
	}
}

func (f *fakeBuffer) handle(m *spillwayv1.AppendRequest) []*spillwayv1.AppendResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.RefetchId != 0 {
		return f.handleRefetched(m)
	}
	last, mayWait := m.LastRecord, m.MayWait
	switch m := m.Message.(type) {
	case *spillwayv1.AppendRequest_FoundOffset:
		f.found[m.FoundOffset.Id] = m.FoundOffset
	case *spillwayv1.AppendRequest_Assign:
		f.committed = append(f.committed, m.Assign.CommittedOffset)
		tp := key(m.Assign.Source)
		if m.Assign.Recreated && f.lives[tp] == m.Assign.Source.Incarnation {
			f.lives[tp]++
			delete(f.partitions, tp)
		}
		answer := &spillwayv1.PartitionAssigned{Source: m.Assign.Source}
		answer.Source.Incarnation = f.lives[tp]
		if p := f.partitions[tp]; p != nil {
			answer.Known, answer.ResumeOffset, answer.SafeOffset, answer.KnownRecords = true, p.next, p.next, p.known
		}
		return []*spillwayv1.AppendResponse{{Message: &spillwayv1.AppendResponse_Assigned{Assigned: answer}}}
	case *spillwayv1.AppendRequest_Batch:
		b := m.Batch
		f.mayWait[b.NextOffset] = mayWait
		err := f.refuse
		if err != nil {
			f.refused++
		} else {
			err = f.extend(b.Source, b.FirstOffset, b.NextOffset, func(p *fakePartition) error {
				p.known = append([]*spillwayv1.Fingerprint{last}, p.known...)
				return p.store(b)
			})
		}
		if f.breakAfter > 0 {
			if f.breakAfter--; f.breakAfter == 0 {
				f.breakAfter = -1 // this answer is the last, and what was sent meanwhile is lost
			}
		}
		return f.answer(b.Source, &spillwayv1.OffsetRange{First: b.FirstOffset, Next: b.NextOffset}, err)
	case *spillwayv1.AppendRequest_Retention:
		f.retention = append(f.retention, m.Retention)
	case *spillwayv1.AppendRequest_Settle:
		r := m.Settle
		err := f.extend(r.Source, r.Range.First, r.Range.Next, func(p *fakePartition) error {
			p.settled = append(p.settled, r)
			return nil
		})
		return f.answer(r.Source, r.Range, err)
	}
	return nil
}

// handleRefetched answers what is refetched. Ranges may come again after a refusal.
func (f *fakeBuffer) handleRefetched(m *spillwayv1.AppendRequest) []*spillwayv1.AppendResponse {
	p := &f.refetched
	r := m.GetSettle().GetRange()
	b := m.GetBatch()
	if b != nil {
		r = &spillwayv1.OffsetRange{First: b.FirstOffset, Next: b.NextOffset}
	}
	a := &spillwayv1.Appended{Source: b.GetSource(), Range: r, RefetchId: m.RefetchId}
	err := f.refuseOnce
	f.refuseOnce = nil
	switch {
	case err != nil:
	case f.accepted[r.First]:
		a.Duplicate = true
	case b != nil:
		err = p.store(b)
	default:
		p.settled = append(p.settled, m.GetSettle())
	}
	if err != nil {
		a.Status = status.Convert(err).Proto()
	} else {
		f.accepted[r.First] = true
		p.next = max(p.next, r.Next)
	}
	return []*spillwayv1.AppendResponse{{Message: &spillwayv1.AppendResponse_Appended{Appended: a}}}
}

func key(s *spillwayv1.SourcePartition) topicPartition {
	return topicPartition{s.Topic, int(s.Partition)}
}

func (f *fakeBuffer) extend(s *spillwayv1.SourcePartition, first, next int64, apply func(*fakePartition) error) error {
	p := f.partitions[key(s)]
	if p == nil {
		p = &fakePartition{start: first, next: first}
		f.partitions[key(s)] = p
	}
	if first != p.next || next <= first {
		return rpc.Error(codes.FailedPrecondition, "GAP", 0, "range [%d,%d) does not begin at %d", first, next, p.next)
	}
	p.next = next
	return apply(p)
}

func (p *fakePartition) store(b *spillwayv1.Batch) error {
	if b.PayloadCrc32C != recordbatch.CRC(b.Payload) {
		return status.Error(codes.DataLoss, "wrong checksum")
	}
	var r recordbatch.Reader
	r.Reset(b.Payload)
	n := int32(0)
	for r.Next() {
		rec := r.Record()
		s := storedRecord{offset: b.FirstOffset + rec.OffsetDelta, timestamp: rec.TimestampMs, key: bytes.Clone(rec.Key), value: bytes.Clone(rec.Value), headers: slices.Clone(rec.Headers)}
		p.records = append(p.records, s)
		n++
	}
	if n != b.RecordCount {
		return status.Errorf(codes.InvalidArgument, "%d records, not %d", n, b.RecordCount)
	}
	return r.Err()
}

func (f *fakeBuffer) answer(s *spillwayv1.SourcePartition, r *spillwayv1.OffsetRange, err error) []*spillwayv1.AppendResponse {
	m := &spillwayv1.Appended{Source: s, Range: r}
	if err != nil {
		m.Status = status.Convert(err).Proto()
	}
	all := []*spillwayv1.AppendResponse{{Message: &spillwayv1.AppendResponse_Appended{Appended: m}}}
	if err == nil {
		all = append(all, &spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Safe{Safe: &spillwayv1.SafeOffset{Source: s, Offset: r.Next}}})
	}
	return all
}

// due returns the requests to be answered when one has come: not those of partitions that are
// held, and those that were.
func (f *fakeBuffer) due(m *spillwayv1.AppendRequest) (due []*spillwayv1.AppendRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := append(f.late, m)
	f.late = nil
	bytes := 0
	for _, m := range all {
		if b := m.GetBatch(); b != nil && f.held[int(b.Source.Partition)] {
			f.late = append(f.late, m)
			bytes += len(b.Payload)
		} else {
			due = append(due, m)
		}
	}
	f.lateBytes = max(f.lateBytes, bytes)
	return due
}

func (f *fakeBuffer) refusals() (n int) {
	f.set(func() { n = f.refused })
	return n
}

// set changes how the buffer behaves.
func (f *fakeBuffer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// records are those of a topic by partition, in the order of their arrival.
func (f *fakeBuffer) records(topic string) map[int][]storedRecord {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[int][]storedRecord)
	for tp, p := range f.partitions {
		if tp.topic == topic {
			all[tp.number] = slices.Clone(p.records)
		}
	}
	return all
}

func (f *fakeBuffer) settled(topic string, number int) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	if p := f.partitions[topicPartition{topic, number}]; p != nil {
		for _, s := range p.settled {
			all = append(all, fmt.Sprintf("[%d,%d) %s: %s", s.Range.First, s.Range.Next, s.Outcome, s.Reason))
		}
	}
	return all
}

// waitFor polls until condition holds.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// told returns what an ingest said at the last assignment that it had committed.
func (f *fakeBuffer) told() *int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.committed[len(f.committed)-1]
}
