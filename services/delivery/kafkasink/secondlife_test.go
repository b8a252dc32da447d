package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// firstLife has the records [0,2) of src/0 acked, and [2,4), which is lease 2, committed and not
// acked.
func firstLife(t *testing.T, cluster *kfake.Cluster, cfg config.Kafka, ledger string, records ...recordbatch.Record) *served {
	t.Helper()
	session := newSession()
	session.ledger = ledger
	session.refuse = map[uint64]bool{2: true}
	s := serveSession(t, cluster, cfg, session)
	s.leases <- lease(1, partition("src", 0), 0, records[:2]...)
	s.wait(t, 1)
	refused := s.refusals()
	s.leases <- lease(2, partition("src", 0), 2, records[2:4]...)
	eventually(t, func() bool { return s.refusals() > refused })
	s.lose(delivery.ErrSessionLost)
	s.cancel()
	_ = s.returned(t)
	return s
}

// nextLife is another process with the leases of what was not acked.
func nextLife(t *testing.T, cluster *kfake.Cluster, cfg config.Kafka, ledger string, records ...recordbatch.Record) *served {
	t.Helper()
	session := newSession()
	session.ledger = ledger
	s := serveSession(t, cluster, cfg, session)
	s.leases <- lease(11, partition("src", 0), 2, records[:2]...)
	s.leases <- lease(12, partition("src", 0), 4, records[2:]...)
	s.wait(t, 2)
	return s
}

// TestSecondLife has progress count only for the ledger that wrote it and the target topic it
// speaks of.
func TestSecondLife(t *testing.T) {
	first, next := values("a", "b", "c", "d"), values("c", "d", "e")
	t.Run("the same ledger", func(t *testing.T) {
		cluster := outCluster(t)
		firstLife(t, cluster, once, "A", first...)
		nextLife(t, cluster, once, "A", next...)
		wantCommitted(t, cluster, "a", "b", "c", "d", "e")
	})
	t.Run("another ledger with other records", func(t *testing.T) {
		cluster := outCluster(t)
		firstLife(t, cluster, once, "A", first...)
		s := nextLife(t, cluster, once, "B", values("C", "D", "E")...)
		wantCommitted(t, cluster, "a", "b", "c", "d", "C", "D", "E")
		if s.log.count("the target cluster has progress of other data of this queue, or of the version before; it does not count, so what that had produced and not acknowledged is produced again") != 1 {
			t.Error("the log does not say that there is progress that does not count")
		}
	})
	t.Run("another ledger for the same process", func(t *testing.T) {
		cluster := outCluster(t)
		s := firstLife(t, cluster, once, "A", first...)
		again := newSession()
		again.ledger = "B"
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, again) }()
		defer func() { cancel(); <-done }()
		again.leases <- lease(21, partition("src", 0), 2, values("C", "D")...)
		again.wait(t, 1)
		wantCommitted(t, cluster, "a", "b", "c", "d", "C", "D")
	})
	t.Run("the target is created again", func(t *testing.T) {
		for _, partitions := range []int32{1, 3} {
			cluster := outCluster(t)
			firstLife(t, cluster, once, "A", first...)
			deleteTopic(t, cluster, "out")
			if err := cluster.CreateTopic("out", partitions, nil); err != nil {
				t.Fatal(err)
			}
			nextLife(t, cluster, once, "A", next...)
			wantCommitted(t, cluster, "c", "d", "e")
		}
	})
	t.Run("the target is gone and created by the delivery", func(t *testing.T) {
		cluster := outCluster(t)
		firstLife(t, cluster, once, "A", first...)
		deleteTopic(t, cluster, "out")
		create := once
		create.MissingTopic = "create"
		nextLife(t, cluster, create, "A", next...)
		wantCommitted(t, cluster, "c", "d", "e")
	})
	t.Run("one of several targets is created again", func(t *testing.T) {
		cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "out", "other"))
		to := func(topic, v string) recordbatch.Record {
			return recordbatch.Record{Value: []byte(v), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(topic)}}}
		}
		byHeader := config.Kafka{Topic: "%{to}", ExactlyOnce: true}
		firstLife(t, cluster, byHeader, "A", to("out", "a"), to("other", "b"), to("out", "c"), to("other", "d"))
		deleteTopic(t, cluster, "other")
		if err := cluster.CreateTopic("other", 1, nil); err != nil {
			t.Fatal(err)
		}
		nextLife(t, cluster, byHeader, "A", to("out", "c"), to("other", "d"), to("out", "e"))
		wantCommitted(t, cluster, "a", "c", "e")
		if got := textsOf(consume(t, cluster, 1, "other"), "other", 0); !slices.Equal(got, []string{"d"}) {
			t.Errorf("the topic that was created again has %q", got)
		}
	})
	t.Run("a buffer that does not tell its ledger", func(t *testing.T) {
		cluster := outCluster(t)
		firstLife(t, cluster, once, "", first...)
		s := nextLife(t, cluster, once, "", next...)
		wantCommitted(t, cluster, "a", "b", "c", "d", "c", "d", "e") // doubled at most
		if s.log.count("the buffer does not tell which ledger it has, so a batch that was produced and not acknowledged when a delivery died is produced again; upgrade the buffer") != 1 {
			t.Error("the log does not say it")
		}
	})
	t.Run("progress of the version before", func(t *testing.T) {
		cluster := outCluster(t)
		s := firstLife(t, cluster, once, "A", first...)
		writeProgress(t, s, "1 0 2:2")
		nextLife(t, cluster, once, "A", next...)
		wantCommitted(t, cluster, "a", "b", "c", "d", "c", "d", "e")
	})
}

// writeProgress writes a text as the progress of src/0, as a version before would have.
func writeProgress(t *testing.T, s *served, text string) {
	t.Helper()
	id := s.producerID(keyOf(partition("src", 0)))
	r, err := s.client().OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{GroupID: id, GenerationID: -1,
		Topics: map[string][]kafka.OffsetCommit{progressTopic: {{Offset: 4, Metadata: text}}}})
	if err == nil {
		err = r.Topics[progressTopic][0].Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestManyTargetsInTransactions has each record once when a delivery dies after any transaction
// of a job with more target topics, and more scattered dead letters, than one progress can tell.
func TestManyTargetsInTransactions(t *testing.T) {
	const topics = 3 * maxTargets
	var names []string
	for i := range topics {
		names = append(names, fmt.Sprintf("out-%03d", i))
	}
	var records []recordbatch.Record
	for i, name := range names {
		if i%3 == 2 {
			name = "not a topic"
		}
		records = append(records, recordbatch.Record{Value: fmt.Append(nil, i), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(name)}}})
	}
	want := topics - topics/3
	for _, dies := range []int{1, 2, 4} {
		t.Run(fmt.Sprint("after transaction ", dies), func(t *testing.T) {
			cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, names...))
			byHeader := config.Kafka{Topic: "%{to}", ExactlyOnce: true}
			s := serve(t, cluster, byHeader)
			ends := 0
			cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if ends++; ends > dies && s.fakeSession.Err() == nil {
					s.lose(delivery.ErrSessionLost)
					s.cancel()
				}
				if ends == dies+1 {
					return nil, errors.New("the delivery dies"), true
				}
				return nil, nil, false
			})
			s.leases <- lease(1, partition("src", 0), 0, records...)
			_ = s.returned(t)
			partly := s.partly()
			if dies == 4 && len(partly) == 0 {
				t.Error("nothing was acked between the transactions")
			}

			next := newSession()
			serveSession(t, cluster, byHeader, next)
			l := lease(2, partition("src", 0), 0, records...)
			next.leases <- delivery.NewLease(2, l.Source, 0, int64(topics), topics, l.Payload, partly...)
			dead := next.wait(t, 1)
			if n := len(dead[len(dead)-1].DeadLetters); n != topics/3 {
				t.Errorf("%d dead letters, want %d", n, topics/3)
			}
			var found []string
			for _, r := range committedOf(t, cluster, names, want) {
				found = append(found, string(r.Value))
			}
			slices.Sort(found)
			if len(found) != want || len(slices.Compact(found)) != want {
				t.Errorf("%d records, %d of them different, want %d", len(found), len(slices.Compact(found)), want)
			}
		})
	}
}
