package buffer

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestFlowsAreTold has a session that produces to Kafka told what is read and produced, before
// its first lease and when it changes, for as long as the streams that say so live; and others
// told nothing.
func TestFlowsAreTold(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	defer r.stop()
	a := r.appendStream()
	r.send(a, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: &spillwayv1.SourceTopics{Source: "logs", Wanted: []string{"web", "re:.*orders.*"}}}})
	r.assign(a, "odd")
	r.appended(a, batch("odd", 0, 1, "x"))

	s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := openConsume("c/odd")
	open.GetOpen().Target = &spillwayv1.FlowTarget{Cluster: "target", Topic: "copy-%{topic}"}
	for _, m := range []*spillwayv1.ConsumeRequest{open, {Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1000}}}} {
		if err := s.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := s.Recv(); err != nil || m.GetOpened() == nil {
		t.Fatal(m, err)
	}
	told := func() *spillwayv1.Flows {
		t.Helper()
		m, err := s.Recv()
		if err != nil || m.GetFlows() == nil {
			t.Fatalf("want flows, got %v, %v", m, err)
		}
		return m.GetFlows()
	}
	f := told() // before the lease
	if len(f.Sources) != 1 || f.Sources[0].Queue != "c" || f.Sources[0].Source != "logs" || f.Sources[0].Cluster == "" || fmt.Sprint(f.Sources[0].Wanted) != "[web re:.*orders.*]" {
		t.Errorf("sources %v", f.Sources)
	}
	if len(f.Targets) != 1 || f.Targets[0].Subscription != "c/odd" || f.Targets[0].Cluster != "target" || f.Targets[0].Topic != "copy-%{topic}" || fmt.Sprint(f.Targets[0].Wanted) != "[odd]" {
		t.Errorf("targets %v", f.Targets)
	}
	if m, err := s.Recv(); err != nil || m.GetLease() == nil {
		t.Fatalf("want the lease, got %v, %v", m, err)
	}
	r.send(a, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: &spillwayv1.SourceTopics{Source: "logs", Wanted: []string{"web", "re:.*orders.*"}}}})
	r.send(a, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: &spillwayv1.SourceTopics{Source: "logs", Wanted: []string{"web"}}}})
	if f := told(); len(f.Sources) != 1 || fmt.Sprint(f.Sources[0].Wanted) != "[web]" {
		t.Errorf("after a change: %v", f)
	}
	if err := a.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if f := told(); len(f.Sources) != 0 || len(f.Targets) != 1 {
		t.Errorf("after the ingest's end: %v", f)
	}
	r.consume("c/all") // does not ask
}

// TestFlowsAreBounded refuses what is too long to be told to every session.
func TestFlowsAreBounded(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	defer r.stop()
	refused := func(what string, sources ...*spillwayv1.SourceTopics) {
		t.Helper()
		a := r.appendStream()
		for _, m := range sources {
			r.send(a, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: m}})
		}
		_, err := a.Recv()
		checkStatus(t, what, err, codes.InvalidArgument, "MALFORMED")
	}
	refused("many topics", &spillwayv1.SourceTopics{Source: "s", Wanted: make([]string, maxWanted+1)})
	var many []*spillwayv1.SourceTopics
	for i := range maxStreamSources + 1 {
		many = append(many, &spillwayv1.SourceTopics{Source: fmt.Sprint("s", i), Wanted: []string{"t"}})
	}
	refused("many sources", many...)
}

// TestManyTargets has sessions told what fits into a message, however many deliveries there are
// and whatever they say.
func TestManyTargets(t *testing.T) {
	f := newFlows()
	for i := range 3000 {
		target := &spillwayv1.FlowTarget{Cluster: "k", Topic: fmt.Sprintf("%04d-%s", i, strings.Repeat("x", maxTemplateBytes-5))}
		if err := f.produce(&consumeStream{}, "c/all", []string{"*"}, target); err != nil {
			t.Fatal(err)
		}
	}
	m, changed := f.now()
	if n := proto.Size(m); n > maxFlowsBytes || len(m.Targets) == 0 {
		t.Errorf("%d targets in %d bytes, want some in at most %d", len(m.Targets), n, maxFlowsBytes)
	}
	if again, _ := f.now(); again != m {
		t.Error("it is put together for each session")
	}
	f.produceNoMore(&consumeStream{})
	select {
	case <-changed:
	default:
		t.Error("a change is not told")
	}
	if again, _ := f.now(); again == m {
		t.Error("after a change it is the same")
	}
}
