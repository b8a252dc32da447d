package kafkasink

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// byteRate throttles produce requests by their size, in bytes a second.
func byteRate(rate int) *kafkaclienttest.Quota {
	return &kafkaclienttest.Quota{Throttle: func(key int16, bytes int) time.Duration {
		if key != int16(kmsg.Produce) {
			return 0
		}
		return time.Duration(bytes) * time.Second / time.Duration(rate)
	}}
}

func numbered(from, n, size int) []recordbatch.Record {
	var records []recordbatch.Record
	for i := range n {
		records = append(records, values(fmt.Sprintf("%06d", from+i)+strings.Repeat("x", size))...)
	}
	return records
}

// wantOnce checks that the partition of "out" has the records once, in order.
func wantOnce(t *testing.T, cluster *kfake.Cluster, partition int32, n int) {
	t.Helper()
	all := consume(t, cluster, n, "out")
	if end := endOffset(cluster, "out", partition); end != int64(n) {
		t.Errorf("partition %d has %d records, want %d", partition, end, n)
	}
	for i, text := range textsOf(all, "out", partition) {
		if text[:6] != fmt.Sprintf("%06d", i) {
			t.Fatalf("partition %d: record %d is %s", partition, i, text[:6])
		}
	}
}

// TestProduceQuota has nothing doubled while the broker mutes this client for longer than the
// time for an answer.
func TestProduceQuota(t *testing.T) {
	quota := byteRate(40_000)
	cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "out"), kfake.ListenFn(quota.Listen))
	s := serve(t, cluster, config.Kafka{Topic: "out"})
	s.timing.request = 2 * time.Second // before the first lease
	for i := range 4 {                 // 60 kB each: a mute of 3 s for the first two together
		s.leases <- lease(uint64(i+1), partition("src", 0), int64(i*60), numbered(i*60, 60, 1000)...)
	}
	until(t, "the trouble is told", func() bool { return s.Trouble() != nil && strings.Contains(s.Trouble().Error(), "quota") })
	s.wait(t, 4)
	if quota.Named() == 0 || quota.Early() > 0 { // before the test's own client comes
		t.Errorf("%d answers named a throttle time, %d requests came too early", quota.Named(), quota.Early())
	}
	wantOnce(t, cluster, 0, 240)
	if s.log.count(troubleBegins) != 0 {
		t.Error("a throttle time is trouble")
	}
}

// TestThrottledBrokerHoldsUpNoOther has jobs that wait for a broker leave their slots to others.
func TestThrottledBrokerHoldsUpNoOther(t *testing.T) {
	var throttled atomic.Bool
	quota := &kafkaclienttest.Quota{Throttle: func(key int16, _ int) time.Duration {
		if key == int16(kmsg.Produce) && throttled.CompareAndSwap(false, true) {
			return time.Hour
		}
		return 0
	}}
	cluster := newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(1, "slow", "fast"), kfake.ListenFn(quota.Listen))
	for topic, broker := range map[string]int32{"slow": 0, "fast": 1} {
		if err := cluster.MoveTopicPartition(topic, 0, broker); err != nil {
			t.Fatal(err)
		}
	}
	s := serve(t, cluster, config.Kafka{})
	s.leases <- lease(1, partition("slow", 0), 0, values("a")...)
	s.wait(t, 1)
	for p := range int32(3 * slotCount) {
		s.leases <- lease(uint64(100+p), partition("slow", p+1), 0, values("later")...)
	}
	for p := range int32(3 * slotCount) {
		s.leases <- lease(uint64(200+p), partition("fast", p), 0, values("now")...)
	}
	for _, a := range s.wait(t, 1+3*slotCount)[1:] {
		if a.Lease.Source.Topic != "fast" {
			t.Error("a broker that mutes this client took records")
		}
	}
}

// TestTransactionsUnderQuota has no transaction aborted, whatever the size of leases is beside
// the quota.
func TestTransactionsUnderQuota(t *testing.T) {
	quota := byteRate(400_000)
	cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(3, "out"), kfake.ListenFn(quota.Listen))
	var commits, aborts atomic.Int32
	cluster.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if r.(*kmsg.EndTxnRequest).Commit {
			commits.Add(1)
		} else {
			aborts.Add(1)
		}
		return nil, nil, false
	})
	s := serve(t, cluster, once)
	for p := range int32(3) {
		s.leases <- lease(uint64(p)*2+1, partition("src", p), 0, numbered(0, 300, 1000)...) // more than firstAllowance
		s.leases <- lease(uint64(p)*2+2, partition("src", p), 300, numbered(300, 10, 1000)...)
	}
	s.wait(t, 6)
	for p := range int32(3) {
		texts := textsOf(consume(t, cluster, 930, "out"), "out", p)
		if len(texts) != 310 || !slices.IsSortedFunc(texts, func(a, b string) int { return strings.Compare(a[:6], b[:6]) }) {
			t.Errorf("partition %d has %d records, want 310 in order", p, len(texts))
		}
	}
	if aborts.Load() > 0 || commits.Load() < 9 {
		t.Errorf("%d transactions were aborted, %d committed; want at least three for each partition", aborts.Load(), commits.Load())
	}
}

// TestQuotaThatDelaysAnswers has the answers of brokers before Kafka 2.0 waited for, which come
// after the throttle time.
func TestQuotaThatDelaysAnswers(t *testing.T) {
	quota := byteRate(50_000)
	quota.Delays = true
	cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "out"), kfake.ListenFn(quota.Listen), kfake.MaxVersions(kversion.V1_1_0()))
	s := serve(t, cluster, config.Kafka{Topic: "out"})
	s.timing.request = 4 * time.Second
	s.leases <- lease(1, partition("src", 0), 0, numbered(0, 100, 1000)...)
	s.wait(t, 1)
	s.leases <- lease(2, partition("src", 0), 100, numbered(100, 1, 250_000)...) // delayed by 5 s
	s.wait(t, 2)
	wantOnce(t, cluster, 0, 101)
	if s.log.count(troubleBegins) != 0 {
		t.Error("a delayed answer is trouble")
	}
}

func TestAllowance(t *testing.T) {
	a := newAllowance()
	for range 20 {
		a.heard(a.now(), 0)
	}
	if a.now() != maxAllowance {
		t.Errorf("without a quota it is %d", a.now())
	}
	const rate = 50_000
	mute := func() time.Duration { return time.Duration(a.now()) * time.Second / rate }
	for range 3 {
		a.heard(a.now(), mute())
	}
	if m := mute(); m > wantedMute {
		t.Errorf("with a quota, a request mutes for %s", m)
	}
	if a.longest() < time.Minute {
		t.Errorf("the longest mute is %s", a.longest())
	}
	for range 100 {
		a.heard(a.now(), mute())
	}
	if m := mute(); m < wantedMute/4 || m > wantedMute || a.longest() > 2*wantedMute {
		t.Errorf("later a request mutes for %s, of late at most %s", m, a.longest())
	}
	a.heard(100, time.Hour)
	if a.now() != minAllowance {
		t.Errorf("at the least it is %d", a.now())
	}
	a.heard(100, 0)
	if a.now() != minAllowance {
		t.Errorf("a small request made it %d", a.now())
	}
}
