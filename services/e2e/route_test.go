package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// newRoute is a pipeline without HDFS: from one cluster to another.
func newRoute(t testing.TB, target broker, edit ...string) *pipeline {
	t.Helper()
	p := newPipeline(t, target, edit...)
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	whole := string(text)
	before, rest, _ := strings.Cut(whole, "  k:\n")
	_, after, _ := strings.Cut(rest, "  t:\n")
	p.rewrite(whole, strings.Replace(before, "        hdfs: {topics: [\"*\"], on_full: block}\n", "", 1)+"  t:\n"+after)
	return p
}

// startRoute returns when everything of a route is ready.
func (p *pipeline) startRoute() {
	p.t.Helper()
	for _, s := range []*service{p.buffer, p.ingest, p.kafka} {
		s.start()
	}
	for _, s := range []*service{p.buffer, p.ingest, p.kafka} {
		s.waitReady()
	}
}

// replica is one more process like s.
func (p *pipeline) replica(s *service, n int) *service {
	p.t.Helper()
	r := newService(p.t, p.dir, fmt.Sprintf("%s-%d", s.name, n), s.args...)
	section := "INGEST"
	if s.args[0] == "delivery" {
		section = "DELIVERY__" + strings.ToUpper(s.args[1])
	}
	r.env = []string{"SPILLWAY_" + section + "__LISTEN=" + r.grpc, "SPILLWAY_" + section + "__HTTP=" + r.http}
	return r
}

// complains is nil when the service is not ready and says one of these.
func (s *service) complains(words ...string) error {
	err := s.ready()
	if err == nil {
		return fmt.Errorf("%s is ready", s.name)
	}
	for _, w := range words {
		if strings.Contains(err.Error(), w) {
			return nil
		}
	}
	return err
}

// settledTopic is nil when the subscription test has settled n offsets of a topic and waits for
// none.
func (p *pipeline) settledTopic(topic string, n int64) error {
	settled, pending, err := p.topicState(topic)
	if err == nil && (settled != n || pending != 0) {
		err = fmt.Errorf("%s: %d offsets settled, %d pending, want %d and 0", topic, settled, pending, n)
	}
	return err
}

// waits is nil when the subscription test waits for n offsets of a topic and has settled none.
func (p *pipeline) waits(topic string, n int64) error {
	settled, pending, err := p.topicState(topic)
	if settled > 0 {
		p.t.Errorf("%s: %d offsets are settled, all were to wait", topic, settled)
	}
	if err == nil && pending != n {
		err = fmt.Errorf("%s: %d offsets pending, want %d", topic, pending, n)
	}
	return err
}

// topicState is how many offsets of a topic the subscription test has settled, and how many it
// waits for.
func (p *pipeline) topicState(topic string) (settled, pending int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	audit, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).Audit(ctx, &spillwayv1.AuditRequest{Name: "c/test"})
	if err != nil {
		return 0, 0, err
	}
	for _, a := range audit.Partitions {
		if a.HoleOffsets > 0 {
			p.t.Errorf("the audit found holes: %v", a)
		}
		if a.Source.Topic == topic {
			settled += a.AppendedOffset - a.StartOffset - a.PendingOffsets
			pending += a.PendingOffsets
		}
	}
	return settled, pending, nil
}

// undelivered is what ended otherwise than delivered, of a topic of the subscription test.
func (p *pipeline) undelivered(topic string) (all []*spillwayv1.Undelivered) {
	p.t.Helper()
	list, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListUndelivered(p.t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: "c/test", PageSize: 10_000})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, u := range list.Ranges {
		if u.Source.Topic == topic {
			all = append(all, u)
		}
	}
	return all
}
