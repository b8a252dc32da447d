package kafkasink

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func reads(queue, cluster string, wanted ...string) *spillwayv1.FlowSource {
	return &spillwayv1.FlowSource{Queue: queue, Source: "from-" + cluster, Cluster: cluster, Wanted: wanted}
}

func produces(subscription, cluster, topic string, wanted ...string) *spillwayv1.FlowTarget {
	if len(wanted) == 0 {
		wanted = []string{"*"}
	}
	return &spillwayv1.FlowTarget{Subscription: subscription, Cluster: cluster, Topic: topic, Wanted: wanted}
}

// TestLoops follows records by cluster id and topic.
func TestLoops(t *testing.T) {
	type sources = []*spillwayv1.FlowSource
	type targets = []*spillwayv1.FlowTarget
	for _, test := range []struct {
		name    string
		sources sources
		targets targets
		way     way
		loop    bool
	}{
		{"the same topic", nil, nil, way{"A", "t", "A", "t"}, true},
		{"the same name elsewhere", nil, nil, way{"A", "t", "B", "t"}, false},
		{"a pattern that matches each copy", sources{reads("q", "A", "re:.*orders.*")}, targets{produces("q/s", "A", "copy-%{topic}")},
			way{"A", "orders", "A", "copy-orders"}, true},
		{"the same on another cluster", sources{reads("q", "A", "re:.*orders.*")}, targets{produces("q/s", "B", "copy-%{topic}")},
			way{"A", "orders", "B", "copy-orders"}, false},
		{"a pattern of whole names", sources{reads("q", "A", "re:orders.*")}, targets{produces("q/s", "A", "copy-%{topic}")},
			way{"A", "orders", "A", "copy-orders"}, false},
		{"one further round that ends", sources{reads("q", "A", "orders", "copy-orders")}, targets{produces("q/s", "A", "copy-%{topic}")},
			way{"A", "orders", "A", "copy-orders"}, false},
		{"a subscription that does not want the copies", sources{reads("q", "A", "re:.*orders.*")}, targets{produces("q/s", "A", "copy-%{topic}", "orders*"), produces("q/all", "B", "%{topic}")},
			way{"A", "orders", "A", "copy-orders"}, false},
		{"there and back by two deliveries", sources{reads("ab", "A", "t"), reads("ba", "B", "t")}, targets{produces("ab/s", "B", "%{topic}"), produces("ba/s", "A", "%{topic}")},
			way{"A", "t", "B", "t"}, true},
		{"there and back by one queue", sources{reads("q", "A", "t"), reads("q", "B", "t")}, targets{produces("q/s", "B", "%{topic}"), produces("q/other", "A", "%{topic}")},
			way{"A", "t", "B", "t"}, true},
		{"there and back under growing names", sources{reads("ab", "A", "re:.*"), reads("ba", "B", "re:.*")}, targets{produces("ab/s", "B", "b-%{topic}"), produces("ba/s", "A", "a-%{topic}")},
			way{"A", "t", "B", "b-t"}, true},
		{"there, and on to a third", sources{reads("ab", "A", "t"), reads("bc", "B", "t")}, targets{produces("ab/s", "B", "%{topic}"), produces("bc/s", "C", "%{topic}")},
			way{"A", "t", "B", "t"}, false},
		{"a loop of others", sources{reads("ab", "A", "t"), reads("q", "B", "re:.*")}, targets{produces("ab/s", "B", "%{topic}"), produces("q/s", "B", "x-%{topic}")},
			way{"A", "t", "B", "t"}, false},
		{"a name from a header that is read", sources{reads("q", "A", "in", "other")}, targets{produces("q/s", "A", "%{to}")},
			way{"A", "in", "A", "other"}, true},
		{"a name from a header that is not read", sources{reads("q", "A", "in", "other")}, targets{produces("q/s", "A", "%{to}")},
			way{"A", "in", "A", "out"}, false},
		{"a broken pattern", sources{reads("q", "A", "re:(")}, targets{produces("q/s", "A", "%{to}")}, way{"A", "in", "A", "out"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			me := "q/s"
			if len(test.targets) > 0 {
				me = test.targets[0].Subscription
			}
			var l loops
			flows := &spillwayv1.Flows{Sources: test.sources, Targets: test.targets}
			for range 2 { // the second time from memory
				if reason := l.reason(flows, me, test.way); (reason != "") != test.loop {
					t.Errorf("refused because %q", reason)
				}
			}
		})
	}
}

// TestLoopSearchIsBounded: what a hundred sources and deliveries make of each other ends, and is
// remembered.
func TestLoopSearchIsBounded(t *testing.T) {
	race.Apart(t)
	flows := &spillwayv1.Flows{}
	for i := range 100 {
		q := fmt.Sprint("q", i)
		flows.Sources = append(flows.Sources, reads(q, "A", "re:.*"))
		flows.Targets = append(flows.Targets, produces(q+"/s", "A", fmt.Sprint("x", i, "-%{topic}")))
	}
	var l loops
	if reason := l.reason(flows, "q0/s", way{"B", "t", "A", "x0-t"}); reason == "" {
		t.Error("not refused")
	}
	var other loops
	if reason := other.reason(flows, "elsewhere/s", way{"B", "t", "A", "x0-t"}); reason != "" {
		t.Errorf("refused because %s", reason)
	}
	for i := range 3 * maxVerdicts {
		l.reason(&spillwayv1.Flows{}, "q/s", way{"B", "t", "A", fmt.Sprint(i)})
	}
	if len(l.verdicts) > maxVerdicts+1 {
		t.Errorf("%d verdicts are remembered", len(l.verdicts))
	}
}

// TestEndlessCopiesAreRefused: the topic of the next copy is not even created, and records with a
// header that leads back are dead-lettered, the others delivered.
func TestEndlessCopiesAreRefused(t *testing.T) {
	from := func(topic string) *spillwayv1.SourcePartition {
		return &spillwayv1.SourcePartition{Cluster: "same", Topic: topic}
	}
	t.Run("a pattern", func(t *testing.T) {
		cluster := newCluster(t, kfake.ClusterID("same"), kfake.AllowAutoTopicCreation())
		session := newSession()
		session.flows = &spillwayv1.Flows{Sources: []*spillwayv1.FlowSource{reads("q", "same", "re:.*orders.*")}, Targets: []*spillwayv1.FlowTarget{produces("q/s", "same", "copy-%{topic}")}}
		s := serveSession(t, cluster, config.Kafka{Topic: "copy-%{topic}"}, session)
		s.leases <- lease(1, from("orders"), 0, values("a")...)
		s.waitTrouble(t, "since source from-same reads that into queue q: they would go round for ever; allow_loop: true allows it")
		if cluster.TopicInfo("copy-orders") != nil {
			t.Error("the topic was created")
		}
		s.leases <- lease(2, from("web"), 0, values("b")...)
		s.wait(t, 1)

		allowed := newSession()
		allowed.flows = session.flows
		serveSession(t, cluster, config.Kafka{Topic: "copy-%{topic}", AllowLoop: true}, allowed)
		allowed.leases <- lease(1, from("orders"), 0, values("a")...)
		allowed.wait(t, 1)
	})
	t.Run("a header", func(t *testing.T) {
		cluster := newCluster(t, kfake.ClusterID("same"), kfake.SeedTopics(1, "orders", "out"))
		session := newSession()
		session.flows = &spillwayv1.Flows{Sources: []*spillwayv1.FlowSource{reads("q", "same", "orders", "web")}, Targets: []*spillwayv1.FlowTarget{produces("q/s", "same", "%{to}")}}
		s := serveSession(t, cluster, config.Kafka{Topic: "%{to}"}, session)
		to := func(topic string) recordbatch.Record {
			return recordbatch.Record{Value: []byte(topic), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(topic)}}}
		}
		s.leases <- lease(1, from("web"), 0, to("out"), to("orders"), to("web"), to("out"))
		dead := s.wait(t, 1)[0].DeadLetters
		if len(dead) != 2 || dead[0].Offset != 1 || dead[1].Offset != 2 || !strings.Contains(dead[0].Reason, "come back to this delivery") {
			t.Errorf("dead letters %v", dead)
		}
		if endOffset(cluster, "orders", 0) > 0 || endOffset(cluster, "out", 0) != 2 {
			t.Error("a record went round, or one did not arrive")
		}
	})
	t.Run("provenance", func(t *testing.T) {
		cluster := newCluster(t, kfake.SeedTopics(1, "t"))
		s := serve(t, cluster, config.Kafka{Provenance: true})
		var hops []recordbatch.Header
		for range maxHops {
			hops = append(hops, recordbatch.Header{Name: topicHeader, Value: []byte("t")})
		}
		s.leases <- lease(1, partition("t", 0), 0, recordbatch.Record{Value: []byte("a"), Headers: hops[1:]}, recordbatch.Record{Value: []byte("b"), Headers: hops})
		if dead := s.wait(t, 1)[0].DeadLetters; len(dead) != 1 || dead[0].Offset != 1 || !strings.Contains(dead[0].Reason, "goes round") {
			t.Errorf("dead letters %v", dead)
		}
		if got := textsOf(consume(t, cluster, 1, "t"), "t", 0); !slices.Equal(got, []string{"a"}) {
			t.Errorf("produced %q", got)
		}
	})
}
