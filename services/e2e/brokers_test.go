package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/config"
)

// pid is the broker's process.
func (b broker) pid(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.run, fmt.Sprintf("kafka-%d", b.port), "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(text))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// freeze stops a broker with SIGSTOP until the test ends: its connections stay, and connecting to
// it succeeds, but it never answers.
func (b broker) freeze(t testing.TB) {
	t.Helper()
	pid := b.pid(t)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
}

// TestStoppedLeader: one of two brokers, which leads half of the partitions and may coordinate the
// group, is stopped with SIGSTOP while ingest reads. When the other one leads them ingest goes on
// there.
func TestStoppedLeader(t *testing.T) {
	t.Parallel()
	first, second := secondBroker(t), secondBroker(t)
	first.more = "broker.session.timeout.ms=3000\noffsets.topic.replication.factor=2\nmin.insync.replicas=1"
	if err := first.start(); err != nil {
		t.Fatal(err)
	}
	second.more, second.joins = first.more, first.port
	if err := second.start(); err != nil {
		t.Fatal(err)
	}
	topic := newName("leader")
	both := newClient(t, first, kgo.SeedBrokers(first.addr(), second.addr()))
	admin := kadm.NewClient(both)
	eventually(t, 30*time.Second, "both brokers are there", func() error {
		_, err := admin.CreateTopic(t.Context(), partitions, 2, nil, topic)
		return err
	})
	produce := func(from, n int) {
		t.Helper()
		for i := range n {
			both.Produce(t.Context(), &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: value(from + i)}, nil)
		}
		if err := both.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	produce(0, 1000)
	s := startSource(t, topic, &config.Source{Brokers: []string{first.addr(), second.addr()}, Group: topic, Topics: []string{topic}})
	eventually(t, time.Minute, "the records", func() error { return s.arrived(1000) })
	second.freeze(t)
	began := time.Now()
	produce(1000, 1000)
	t.Logf("the first broker led all partitions after %s", time.Since(began).Round(100*time.Millisecond))
	eventually(t, time.Minute, "the rest", func() error { return s.arrived(2000) })
	t.Logf("all was read after %s", time.Since(began).Round(100*time.Millisecond))
	eventually(t, time.Minute, "ingest is ready", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.ready {
			return fmt.Errorf("it is not: %s", s.reason)
		}
		return nil
	})
}
