package delivery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

const memory = 1000

func refusal() *statuspb.Status {
	return &statuspb.Status{Code: int32(codes.FailedPrecondition), Message: "lease gone"}
}

// ackAsync acks in the background and yields Ack's result.
func ackAsync(s *session, leases ...*Lease) <-chan error {
	done := make(chan error, 1)
	ack := &Ack{}
	for _, l := range leases {
		ack.Leases = append(ack.Leases, AckedLease{Lease: l})
	}
	go func() { done <- s.Ack(context.Background(), ack) }()
	return done
}

func TestSessionOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		if stream.open.Subscription != "q/s" || stream.open.Consumer != "me" || stream.open.Ordering != spillwayv1.Ordering_ORDERING_PARTITION {
			t.Errorf("opened with %v", stream.open)
		}
		if s.ID() != 7 {
			t.Errorf("ID is %d", s.ID())
		}
		if s.LedgerID() != "made-with-the-data" {
			t.Errorf("LedgerID is %q", s.LedgerID())
		}
	})
}

func TestFlowsAreTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		if s.Flows() != nil {
			t.Errorf("before the buffer told: %v", s.Flows())
		}
		for _, queue := range []string{"a", "b"} {
			stream.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Flows{Flows: &spillwayv1.Flows{Sources: []*spillwayv1.FlowSource{{Queue: queue}}}}})
			synctest.Wait()
			if f := s.Flows(); len(f.GetSources()) != 1 || f.Sources[0].Queue != queue {
				t.Errorf("flows %v, want those of %s", f, queue)
			}
		}
	})
}

func TestCreditIsTheMemoryBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		if got := stream.credit(); got != memory {
			t.Fatalf("first credit is %d, want %d", got, memory)
		}
		big := strings.Repeat("x", 400)
		l1, l2 := none(1, big), none(2, big)
		size := int64(len(l1.Batch.Payload))
		stream.lease(l1)
		stream.lease(l2)
		got1, got2 := <-s.Leases(), <-s.Leases()
		if got1.ID != 1 || got2.ID != 2 || got1.First != 100 || got1.Next != 101 || got1.Attempt != 1 || got1.Source.Partition != 3 {
			t.Fatalf("got %+v and %+v", got1, got2)
		}
		if v := values(t, got1); !slices.Equal(v, []string{big}) {
			t.Errorf("got records %q", v)
		}
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Fatalf("more credit while everything is held: %v", <-stream.requests)
		}

		done := ackAsync(s, got1)
		ack := stream.next().GetAck()
		if len(ack.GetLeases()) != 1 || ack.Leases[0].LeaseId != 1 {
			t.Fatalf("got ack %v", ack)
		}
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Fatalf("credit before the ack was accepted: %v", <-stream.requests)
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := stream.credit(); got != size {
			t.Errorf("credit after the ack is %d, want %d", got, size)
		}
		if r, b := c.records.Load(), c.bytes.Load(); r != 1 || b != 400 {
			t.Errorf("counted %d records of %d bytes", r, b)
		}

		s.Nack(got2, 5*time.Second, errors.New("not now"))
		nack := stream.next().GetNack()
		if nack.GetLeaseId() != 2 || nack.GetDelay().AsDuration() != 5*time.Second || nack.GetReason() != "not now" {
			t.Errorf("got nack %v", nack)
		}
		if got := stream.credit(); got != size {
			t.Errorf("credit after the nack is %d, want %d", got, size)
		}
		s.Nack(got2, 0, errors.New("again"))
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Errorf("a lease was given back twice: %v", <-stream.requests)
		}
	})
}

func TestCreditCountsDecompressedBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		stream.credit()
		big := strings.Repeat("x", 2*memory)
		compressed := lease(1, spillwayv1.Codec_CODEC_ZSTD, big)
		stream.lease(compressed)
		l := <-s.Leases()
		if v := values(t, l); !slices.Equal(v, []string{big}) {
			t.Fatalf("got %d records", len(v))
		}
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Fatalf("credit while more than the bound is held: %v", <-stream.requests)
		}
		done := ackAsync(s, l)
		stream.answer(&spillwayv1.AckResult{Id: stream.next().GetAck().GetId()})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(stream.requests) != 0 {
			t.Fatalf("credit of a few bytes while the buffer has plenty: %v", <-stream.requests)
		}
		stream.lease(none(2, strings.Repeat("y", memory)))
		if got := stream.credit(); got != int64(len(compressed.Batch.Payload)) {
			t.Errorf("credit is %d, want what the compressed batch had used up, %d", got, len(compressed.Batch.Payload))
		}
	})
}

func TestExtendsAllHeldLeasesInOneMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		stream.credit()
		for id := uint64(1); id <= 3; id++ {
			stream.lease(none(id, "v"))
		}
		taken := <-s.Leases() // the others wait, and must be kept alive as well
		began := time.Now()
		for range 2 {
			ids := stream.next().GetExtend().GetLeaseIds()
			slices.Sort(ids)
			if !slices.Equal(ids, []uint64{1, 2, 3}) {
				t.Fatalf("extended %v", ids)
			}
		}
		if took := time.Since(began); took != 2*leaseDuration/3 {
			t.Errorf("two extensions after %s, want %s", took, 2*leaseDuration/3)
		}
		done := ackAsync(s, taken)
		stream.answer(&spillwayv1.AckResult{Id: stream.next().GetAck().GetId()})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		ids := stream.next().GetExtend().GetLeaseIds()
		slices.Sort(ids)
		if !slices.Equal(ids, []uint64{2, 3}) {
			t.Errorf("extended %v after the ack of 1", ids)
		}
	})
}

func TestRevokedLeaseIsNotHeldAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		stream.credit()
		for id := uint64(1); id <= 3; id++ {
			stream.lease(none(id, strings.Repeat("v", 300)))
		}
		taken := <-s.Leases()
		stream.revoke(1, 2, 99)
		if got := stream.credit(); got < 600 {
			t.Errorf("credit after the revocation is %d, want that of two leases", got)
		}
		if !taken.Revoked() {
			t.Error("the lease does not know that it was revoked")
		}
		if l := <-s.Leases(); l.ID != 3 {
			t.Errorf("got lease %d, want 3: 2 was revoked before it was taken", l.ID)
		}
		if err := s.Ack(t.Context(), &Ack{Leases: []AckedLease{{Lease: taken}}}); !errors.Is(err, ErrRefused) {
			t.Errorf("ack of a revoked lease: %v, want ErrRefused", err)
		}
		if c.refusedAcks.Load() != 1 {
			t.Errorf("counted %d refused acks", c.refusedAcks.Load())
		}
	})
}

func TestRefusedAckLeavesTheOtherLeasesHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		stream.credit()
		stream.lease(none(1, "a", "b", "c"))
		stream.lease(none(2, "d"))
		l1, l2 := <-s.Leases(), <-s.Leases()
		values(t, l1)
		first, second := ackAsync(s, l1), ackAsync(s, l1, l2)
		ack1, ack2 := stream.next().GetAck(), stream.next().GetAck()
		if len(ack1.Leases) == 2 {
			ack1, ack2 = ack2, ack1
		}
		stream.answer(&spillwayv1.AckResult{Id: ack2.Id, Status: refusal()}) // out of order
		if err := <-second; !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "lease gone") {
			t.Errorf("second ack: %v, want ErrRefused with the buffer's reason", err)
		}
		stream.answer(&spillwayv1.AckResult{Id: ack1.Id})
		if err := <-first; err != nil {
			t.Errorf("first ack: %v", err)
		}
		if got := s.Held(); got != 1 {
			t.Errorf("%d leases held, want 1", got)
		}
		if c.records.Load() != 3 {
			t.Errorf("counted %d records, want those of the accepted ack", c.records.Load())
		}
	})
}

func TestAckCarriesDeadLettersAndState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		log := &logBuffer{}
		s.log = slog.New(slog.NewTextHandler(log, nil))
		stream.credit()
		stream.lease(none(1, "a", "b"))
		l := <-s.Leases()
		done := make(chan error, 1)
		go func() {
			done <- s.Ack(context.Background(), &Ack{
				Leases: []AckedLease{{Lease: l, DeadLetters: []DeadLetter{{Offset: 101, Reason: "bad"}}}},
				State:  []StateChange{{Key: "put", Value: []byte{}}, {Key: "delete"}}})
		}()
		ack := stream.next().GetAck()
		if d := ack.Leases[0].DeadLetters; len(d) != 1 || d[0].Offset != 101 || d[0].Reason != "bad" {
			t.Errorf("dead letters: %v", d)
		}
		if ch := ack.StateChanges; len(ch) != 2 || ch[0].Value == nil || ch[1].Value != nil {
			t.Errorf("state changes: %v, want an empty value and a deletion", ch)
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if c.records.Load() != 1 || c.deadLetters.Load() != 1 {
			t.Errorf("counted %d records, %d dead letters", c.records.Load(), c.deadLetters.Load())
		}
		if log.count(`msg="records are dead-lettered; spillway dead-letters says why" source=`) != 1 || log.count("records=1 first_offset=101") != 1 || log.count("bad") != 0 {
			t.Errorf("the log is %s", log.b.String())
		}
	})
}

func TestBrokenStreamAnswersWaitingAcks(t *testing.T) {
	for name, breakIt := range map[string]func(*fakeStream){
		"error":   func(f *fakeStream) { f.end <- status.Error(codes.Unavailable, "gone") },
		"orderly": func(f *fakeStream) { f.end <- nil },
		"unclear answer": func(f *fakeStream) {
			f.answer(&spillwayv1.AckResult{Id: 1, Status: &statuspb.Status{Code: int32(codes.Internal)}})
		},
		"unknown ack":      func(f *fakeStream) { f.answer(&spillwayv1.AckResult{Id: 55}) },
		"lease of nothing": func(f *fakeStream) { f.lease(&spillwayv1.Lease{LeaseId: 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, stream, c := newSession(t, memory)
				stream.credit()
				stream.lease(none(1, "a"))
				stream.lease(none(2, "b"))
				l := <-s.Leases()
				done := ackAsync(s, l)
				stream.next()
				if s.Err() != nil {
					t.Errorf("Err is %v while the session lives", s.Err())
				}
				breakIt(stream)
				if err := <-done; !errors.Is(err, ErrSessionLost) {
					t.Errorf("waiting ack got %v, want ErrSessionLost", err)
				}
				<-s.Lost()
				for range s.Leases() { // at most the one that waited; then it is closed
				}
				if err := s.Err(); !errors.Is(err, ErrSessionLost) {
					t.Errorf("Err is %v", err)
				}
				if err := s.Ack(t.Context(), &Ack{Leases: []AckedLease{{Lease: l}}}); !errors.Is(err, ErrSessionLost) {
					t.Errorf("later ack got %v, want ErrSessionLost", err)
				}
				if !l.Revoked() || s.Held() != 0 || c.records.Load() != 0 {
					t.Errorf("revoked %v, %d held, %d records counted", l.Revoked(), s.Held(), c.records.Load())
				}
			})
		})
	}
}

func TestDamagedBatchIsGivenBack(t *testing.T) {
	broken := func(change func(*spillwayv1.Batch)) *spillwayv1.Lease {
		l := lease(1, spillwayv1.Codec_CODEC_ZSTD, "value")
		change(l.Batch)
		return l
	}
	for name, l := range map[string]*spillwayv1.Lease{
		"checksum": broken(func(b *spillwayv1.Batch) { b.PayloadCrc32C++ }),
		"zstd": broken(func(b *spillwayv1.Batch) {
			other := none(1, "not compressed")
			b.Payload, b.PayloadCrc32C = other.Batch.Payload, other.Batch.PayloadCrc32C
		}),
		"codec": broken(func(b *spillwayv1.Batch) { b.Codec = 99 }),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, stream, c := newSession(t, 64)
				stream.credit()
				stream.lease(l)
				n := stream.next().GetNack()
				if n.GetLeaseId() != 1 || n.Delay != nil || !strings.Contains(n.Reason, "damaged batch") {
					t.Fatalf("got %v, want a nack with the reason", n)
				}
				if got := stream.credit(); got != int64(len(l.Batch.Payload)) {
					t.Errorf("credit is %d, want %d", got, len(l.Batch.Payload))
				}
				stream.lease(none(2, "good"))
				if got := <-s.Leases(); got.ID != 2 || c.damaged.Load() != 1 {
					t.Errorf("got lease %d, %d damaged counted", got.ID, c.damaged.Load())
				}
			})
		})
	}
}

func TestDrainGivesBackWhatWasNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		stream.credit()
		for id := uint64(1); id <= 3; id++ {
			stream.lease(none(id, "v"))
		}
		taken := <-s.Leases()
		synctest.Wait()
		s.Drain()
		for _, want := range []uint64{3, 2} {
			n := stream.next().GetNack()
			if n.GetLeaseId() != want || n.Delay == nil || n.Delay.AsDuration() != 0 {
				t.Errorf("got %v, want a nack of %d without delay", n, want)
			}
		}
		if l, ok := <-s.Leases(); ok {
			t.Errorf("got lease %d while draining", l.ID)
		}
		if err := s.Err(); err != nil {
			t.Errorf("Err is %v while draining", err)
		}
		stream.lease(none(3, "v")) // credit was left at the buffer
		done := ackAsync(s, taken)
		ack := stream.next().GetAck()
		if ack == nil {
			t.Fatal("no ack while draining")
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-done; err != nil {
			t.Errorf("ack while draining: %v", err)
		}
		s.Close(t.Context())
		for m := range stream.requests {
			t.Errorf("unexpected %v", m)
		}
		if err := s.Ack(t.Context(), &Ack{}); !errors.Is(err, ErrSessionLost) {
			t.Errorf("ack after Close: %v", err)
		}
	})
}

func TestPauseHandsOutNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		stream.credit()
		big := strings.Repeat("v", 500)
		stream.lease(none(1, big))
		stream.lease(none(2, big))
		l := <-s.Leases()
		s.Pause(true)
		synctest.Wait()
		done := ackAsync(s, l)
		stream.answer(&spillwayv1.AckResult{Id: stream.next().GetAck().GetId()})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case l := <-s.Leases():
			t.Errorf("got lease %d while paused", l.ID)
		case m := <-stream.requests:
			t.Errorf("the client said %v while paused", m)
		default:
		}
		s.Pause(false)
		if got := stream.credit(); got <= 0 {
			t.Errorf("credit is %d", got)
		}
		if l := <-s.Leases(); l.ID != 2 {
			t.Errorf("got lease %d, want 2", l.ID)
		}
	})
}

func TestAdoptionsWaitForTheSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		for id := uint64(1); id <= 2; id++ {
			stream.send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Adopt{Adopt: &spillwayv1.Adopt{
				SessionId: id, Entries: []*spillwayv1.StateEntry{{Key: "k", Value: []byte("v")}}}}})
		}
		stream.lease(none(1, "v"))
		if l := <-s.Leases(); l.ID != 1 { // not held up by adoptions nobody takes
			t.Fatal("no lease")
		}
		for id := uint64(1); id <= 2; id++ {
			if a := <-s.Adoptions(); a.SessionID != id || a.Entries[0].Key != "k" {
				t.Errorf("got %+v", a)
			}
		}
	})
}

func TestCloseCutsABufferThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, _ := newSession(t, memory)
		close(stream.stay)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		s.Close(ctx)
		if took := time.Since(began); took != time.Second {
			t.Errorf("Close took %s", took)
		}
	})
}

func TestOpenGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFakeBuffer(t)
		f.refuse = func() error { return status.Error(codes.NotFound, "no subscription") }
		conn, err := f.dial("")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		client := spillwayv1.NewBufferServiceClient(conn)
		_, err = openSession(t.Context(), client, oneShard(sessionConfig{subscription: "q/x"}), nil, nil)
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "q/x") {
			t.Errorf("got %v, want NOT_FOUND with the subscription's name", err)
		}
		silence := make(chan struct{})
		f.refuse = func() error { <-silence; return nil }
		if _, err = openSession(t.Context(), client, oneShard(sessionConfig{}), nil, nil); err == nil || !strings.Contains(err.Error(), "no answer within 10s") {
			t.Errorf("a silent buffer: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err = openSession(ctx, client, oneShard(sessionConfig{}), nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
		close(silence)
	})
}

// TestBatchesThatExpand: of batches that a few bytes decompress to megabytes of, those that wait
// for the sink stay as they came, however much credit there was for them.
func TestBatchesThatExpand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leases, expanded = 20, 4 << 20
		s, stream, _ := newSession(t, memory)
		stream.credit()
		for id := range uint64(leases) {
			stream.lease(lease(id+1, spillwayv1.Codec_CODEC_ZSTD, strings.Repeat("x", expanded)))
		}
		for range leases {
			synctest.Wait()
			s.mu.Lock()
			held := s.heldBytes
			s.mu.Unlock()
			if held > 2*expanded {
				t.Errorf("%d bytes are held", held)
			}
			l := <-s.Leases()
			if v := values(t, l); len(v) != 1 || len(v[0]) != expanded {
				t.Fatalf("lease %d has %d values", l.ID, len(v))
			}
			done := ackAsync(s, l)
			for m := stream.next(); ; m = stream.next() {
				if a := m.GetAck(); a != nil {
					stream.answer(&spillwayv1.AckResult{Id: a.Id})
					break
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
}
