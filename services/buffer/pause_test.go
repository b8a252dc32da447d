package buffer

import (
	"slices"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestPausesOverStreams: an ingest pauses a source and a delivery itself, all instances hear of
// it, those that come later too, also after a restart of the buffer. One that does not say that it
// hears is told nothing.
func TestPausesOverStreams(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil)
	ingest := func(hears bool) (spillwayv1.BufferService_AppendClient, *spillwayv1.AppendOpened) {
		t.Helper()
		s, err := spillwayv1.NewBufferServiceClient(r.conn).Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.send(s, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "c", Cluster: "k", Client: "test", HearsPauses: hears}}})
		m, err := s.Recv()
		if err != nil || m.GetOpened() == nil || !m.GetOpened().KeepsPauses {
			t.Fatalf("open: %v, %v", m, err)
		}
		return s, m.GetOpened()
	}
	session := func(delivery string) (spillwayv1.BufferService_ConsumeClient, *spillwayv1.ConsumeOpened) {
		t.Helper()
		s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(t.Context())
		if err == nil {
			err = s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
				Subscription: "c/all", Consumer: "test", Ordering: spillwayv1.Ordering_ORDERING_NONE, Delivery: delivery}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Recv()
		if err != nil || m.GetOpened() == nil || !m.GetOpened().KeepsPauses {
			t.Fatalf("open: %v, %v", m, err)
		}
		return s, m.GetOpened()
	}
	pause := func(paused bool) {
		t.Helper()
		one, _ := ingest(true)
		other, _ := ingest(true)
		deaf, _ := ingest(false)
		r.send(one, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Pause{Pause: &spillwayv1.PauseSourceEverywhere{Source: "logs", Paused: paused}}})
		for _, s := range []spillwayv1.BufferService_AppendClient{one, other} {
			if m, err := s.Recv(); err != nil || m.GetPausedSources() == nil || slices.Contains(m.GetPausedSources().Sources, "logs") != paused {
				t.Fatalf("%v, %v", m, err)
			}
		}
		r.send(deaf, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source("t")}}})
		if m, err := deaf.Recv(); err != nil || m.GetAssigned() == nil {
			t.Errorf("an ingest that does not hear pauses was sent %v, %v", m, err)
		}
		a, _ := session("hdfs")
		b, _ := session("hdfs")
		if err := a.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Pause{Pause: &spillwayv1.PauseEverywhere{Paused: paused}}}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []spillwayv1.BufferService_ConsumeClient{a, b} {
			if m, err := s.Recv(); err != nil || m.GetPaused() == nil || m.GetPaused().Paused != paused {
				t.Fatalf("%v, %v", m, err)
			}
		}
	}
	pause(true)
	r.stop()
	r = start(t, dir, nil)
	if _, opened := ingest(true); !slices.Equal(opened.PausedSources, []string{"logs"}) {
		t.Errorf("after a restart: %v", opened)
	}
	if _, opened := session("hdfs"); !opened.Paused {
		t.Errorf("after a restart: %v", opened)
	}
	if _, opened := session("other"); opened.Paused {
		t.Errorf("another delivery: %v", opened)
	}
	pause(false)
	if _, opened := ingest(true); len(opened.PausedSources) != 0 {
		t.Errorf("after it was resumed: %v", opened)
	}
}
