package kafkastore

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// fakeKafka is a cluster in memory. It knows less settings than Kafka, so what is asked of them is
// kept and answered here.
type fakeKafka struct {
	*kfake.Cluster
	settings map[string]map[string]string // by topic
}

func newFakeKafka(t *testing.T, brokers int, more ...kfake.Opt) *fakeKafka {
	t.Helper()
	c, err := kfake.NewCluster(append(more, kfake.NumBrokers(brokers))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &fakeKafka{c, kafkaclienttest.KeepSettings(c)}
}

// clusterShard is a shard whose topics are in a cluster.
type clusterShard struct {
	t   *testing.T
	cfg Config
}

func newClusterShard(t *testing.T, brokers []string, replication int, segmentBytes int64) *clusterShard {
	t.Helper()
	name := "spillway." + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name())
	c := &clusterShard{t, Config{Topics: Topics{Brokers: brokers, ClientID: "test", Name: name, Namespace: "n", Queue: "q", Shards: 2, Replication: replication},
		Shard: 1, Address: "here:1", SegmentBytes: segmentBytes, Log: slog.New(slog.DiscardHandler)}}
	if _, made, err := Init(t.Context(), c.cfg.Topics, c.cfg.Log); err != nil || !made {
		t.Fatalf("init: made %v, %v", made, err)
	}
	return c
}

func (c *clusterShard) Open(opts queue.StoreOptions) (queue.Store, error) {
	s, err := Open(c.t.Context(), c.cfg, opts)
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { _ = s.Close() })
	return s, nil
}

func (c *clusterShard) Crash(s queue.Store)  { crash(s) }
func (c *clusterShard) Settle(s queue.Store) { settle(c.t, s) }

func newClusterHarness(t *testing.T, segmentBytes int64) storetest.Harness {
	return newClusterShard(t, newFakeKafka(t, 1).ListenAddrs(), 1, segmentBytes)
}

func TestConformanceInACluster(t *testing.T) { storetest.Run(t, newClusterHarness) }

func TestTakeoverInACluster(t *testing.T) { storetest.RunTakeover(t, newClusterHarness) }

func whole(meta string) queue.Snapshot {
	s := queue.WholeSnapshot(meta)
	return &s
}

func noOptions(t *testing.T) queue.StoreOptions {
	return queue.StoreOptions{Recover: func(queue.Recovered) error { return nil }, Snapshot: func() queue.Snapshot { return whole("s") },
		Damage: func(d string) { t.Errorf("damage: %s", d) }}
}

// TestInitWaitsForTopics has brokers that have not heard yet of the topics that Init has created.
func TestInitWaitsForTopics(t *testing.T) {
	k := newFakeKafka(t, 1)
	const answers = 5
	h := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Err: kerr.UnknownTopicOrPartition, Topic: "spillway.TestInitWaitsForTopics.payload", Count: answers})
	newClusterShard(t, k.ListenAddrs(), 1, 0)
	if h.Hits() != answers {
		t.Errorf("%d answers without the topic", h.Hits())
	}
}

func TestOpenRefusesSettingsByName(t *testing.T) {
	k := newFakeKafka(t, 3)
	c := newClusterShard(t, k.ListenAddrs(), 3, 0)
	good := func(when string) {
		t.Helper()
		s, err := c.Open(noOptions(t))
		if err != nil {
			t.Fatalf("open %s: %v", when, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	good("as it was initialized")
	for _, topic := range []string{c.cfg.Topics.journal(), c.cfg.Topics.payload()} {
		for name, bad := range map[string]string{"cleanup.policy": "compact", "retention.ms": "604800000", "retention.bytes": "1000000", "unclean.leader.election.enable": "true",
			"message.timestamp.type": "CreateTime", "max.message.bytes": "1000", "min.insync.replicas": "1"} {
			was := k.settings[topic][name]
			k.settings[topic][name] = bad
			_, err := c.Open(noOptions(t))
			if !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), "topic "+topic+" has "+name+"="+bad) {
				t.Errorf("open with %s=%s of %s: %v", name, bad, topic, err)
			}
			k.settings[topic][name] = was
		}
	}
	good("when all is mended")
}

func TestOpenRefusesTopicsOfOthers(t *testing.T) {
	k := newFakeKafka(t, 1)
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	refused := func(what string, want error, change func(*Config), word string) {
		t.Helper()
		cfg := c.cfg
		change(&cfg)
		s, err := Open(t.Context(), cfg, noOptions(t))
		if err == nil {
			_ = s.Close()
		}
		if !errors.Is(err, want) || !strings.Contains(err.Error(), word) {
			t.Errorf("open with %s: got %v, want %v", what, err, want)
		}
	}
	refused("another queue", ErrIdentity, func(c *Config) { c.Topics.Queue = "other" }, `"other"`)
	refused("another namespace", ErrIdentity, func(c *Config) { c.Topics.Namespace = "staging" }, `"staging"`)
	refused("fewer shards", ErrIdentity, func(c *Config) { c.Topics.Shards = 1; c.Shard = 0 }, "created with 2 shards")
	refused("more shards", ErrSettings, func(c *Config) { c.Topics.Shards = 3 }, "2 partitions for 3 shards")
	refused("more replicas", ErrSettings, func(c *Config) { c.Topics.Replication = 3 }, "1 replicas instead of 3")
	refused("no topics", ErrIdentity, func(c *Config) { c.Topics.Name = "nothing" }, "topic nothing.journal does not exist")
	life, made, err := Init(t.Context(), c.cfg.Topics, c.cfg.Log)
	if err != nil || made || life == "" {
		t.Errorf("init of a store that nobody has used: made %v, %v", made, err)
	}
	s, err := c.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append([]queue.Entry{{Kind: queue.BatchEntry, Payload: []byte("p")}}); err != nil {
		t.Fatal(err)
	}
	if again, made, err := Init(t.Context(), c.cfg.Topics, c.cfg.Log); err != nil || made || again != life {
		t.Errorf("init of a store in use: life %s, made %v, %v; want %s as it is", again, made, err, life)
	}
	other := c.cfg.Topics
	other.Queue = "other"
	if _, _, err := Init(t.Context(), other, c.cfg.Log); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), `"q"`) {
		t.Errorf("init of another queue in the topics: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// Both topics are created again, empty, with the right settings.
	for _, topic := range []string{c.cfg.Topics.journal(), c.cfg.Topics.payload()} {
		if err := k.DeleteTopic(topic); err != nil {
			t.Fatal(err)
		}
		if err := k.CreateTopic(topic, 2, nil); err != nil {
			t.Fatal(err)
		}
	}
	refused("topics that were created again", ErrIdentity, func(*Config) {}, "does not begin with an identity")
}

// TestTopicIsCreatedAgain has an owner that goes on. Nothing that it writes may be answered.
func TestTopicIsCreatedAgain(t *testing.T) {
	for _, topic := range []string{"journal", "payload"} {
		t.Run(topic, func(t *testing.T) {
			k := newFakeKafka(t, 1)
			c := newClusterShard(t, k.ListenAddrs(), 1, 0)
			s, err := c.Open(noOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			group := []queue.Entry{{Kind: queue.BatchEntry, Payload: []byte("p")}, {Kind: queue.ChangeEntry}}
			for range 5 {
				if _, err := s.Append(group); err != nil {
					t.Fatal(err)
				}
			}
			name := c.cfg.Topics.Name + "." + topic
			if err := k.DeleteTopic(name); err != nil {
				t.Fatal(err)
			}
			if err := k.CreateTopic(name, 2, nil); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := s.Append(group); !errors.Is(err, ErrReplaced) {
					t.Errorf("append: %v, want %v", err, ErrReplaced)
				}
			}
			if err := s.(queue.Checker).Check(); !errors.Is(err, ErrReplaced) {
				t.Errorf("check: %v", err)
			}
		})
	}
}

func TestAppendWaitsForKafka(t *testing.T) {
	k := newFakeKafka(t, 1)
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	s, err := c.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	const failures = 4
	h := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: failures})
	if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry}}); err != nil || h.Hits() != failures {
		t.Errorf("append: %v after %d failures", err, h.Hits())
	}
	// The records are stored each time, and the answer says that they may not be.
	h = k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: failures})
	for range failures {
		if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte("c")}}); err != nil {
			t.Fatal(err)
		}
	}
	if h.Hits() != failures {
		t.Errorf("%d failures", h.Hits())
	}
	crash(s)
	var metas []string
	opts := noOptions(t)
	opts.Recover = func(r queue.Recovered) error { metas = append(metas, string(r.Meta)); return nil }
	if _, err := c.Open(opts); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(metas, " "); got != "s  c c c c" {
		t.Errorf("recovered %q", got)
	}
}

func TestCloseEndsAppend(t *testing.T) {
	k := newFakeKafka(t, 1)
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	s, err := c.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	h := k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	done := make(chan error)
	go func() {
		_, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry}})
		done <- err
	}()
	if err := h.Wait(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("append: %v, want %v", err, errClosed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, c.cfg, noOptions(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v, want %v", err, context.Canceled)
	}
}

func TestSettingsAreLookedAtAgain(t *testing.T) {
	k := newFakeKafka(t, 1)
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	var log strings.Builder
	c.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	opened, err := c.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*Store)
	look := func(told, line string) string {
		t.Helper()
		log.Reset()
		told = s.checkSettings(told)
		if got := strings.TrimSpace(log.String()); (line == "") != (got == "") || !strings.Contains(got, line) {
			t.Errorf("the log has %q, want %q", got, line)
		}
		return told
	}
	told := look("", "")
	k.settings[c.cfg.Topics.journal()]["retention.ms"] = "1000"
	told = look(told, "has retention.ms=1000; it must be -1")
	told = look(told, "") // once
	if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry}}); err != nil {
		t.Errorf("an alarm stops the store: %v", err)
	}
	k.settings[c.cfg.Topics.journal()]["retention.ms"] = "-1"
	told = look(told, "recovered")
	look(told, "")
	if err := k.DeleteTopic(c.cfg.Topics.journal()); err != nil {
		t.Fatal(err)
	}
	if err := k.CreateTopic(c.cfg.Topics.journal(), 2, nil); err != nil {
		t.Fatal(err)
	}
	look("", "")
	if err := s.Check(); !errors.Is(err, ErrReplaced) {
		t.Errorf("check: %v, want %v", err, ErrReplaced)
	}
}

// TestThrottlingIsObeyed has a broker with a quota: no request comes before the time that it
// named.
func TestThrottlingIsObeyed(t *testing.T) {
	const pause = 100 * time.Millisecond
	var on atomic.Bool
	quota := &kafkaclienttest.Quota{Throttle: func(key int16, _ int) time.Duration {
		if kmsg.Key(key) == kmsg.Produce && on.Load() {
			return pause
		}
		return 0
	}}
	k := newFakeKafka(t, 1, kfake.ListenFn(quota.Listen))
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	s, err := c.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	on.Store(true)
	const groups = 5
	began := time.Now()
	for range groups {
		if _, err := s.Append([]queue.Entry{{Kind: queue.BatchEntry, Payload: []byte("p")}}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); quota.Early() > 0 || quota.Named() < groups || took < (groups-1)*pause {
		t.Errorf("%d requests came early, %d answers named a time, all within %v", quota.Early(), quota.Named(), took)
	}
}

// TestLeaderMoves has another broker lead the partition before each kind of request.
func TestLeaderMoves(t *testing.T) {
	k := newFakeKafka(t, 3)
	c := newClusterShard(t, k.ListenAddrs(), 1, 0)
	client := c.cfg.Topics.client()
	defer client.Close()
	name := c.cfg.Topics.payload()
	all, err := client.Leaders(t.Context(), []string{name})
	if err != nil {
		t.Fatal(err)
	}
	l := &kafkaLog{client: client, topic: name, id: all[name].ID, partition: 1, maxBytes: 1 << 20}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 {
		for what, do := range map[string]func() (int64, error){
			"produce": func() (int64, error) { return l.produce(ctx, []record{{value: []byte("v")}}) },
			"read":    func() (int64, error) { return l.read(ctx, 0, func(int64, record) error { return nil }) },
			"bounds":  func() (int64, error) { _, next, err := l.bounds(ctx); return next, err },
			"trim":    func() (int64, error) { return 0, l.trim(ctx, 0) },
		} {
			if err := k.MoveTopicPartition(name, 1, (k.LeaderFor(name, 1)+1)%3); err != nil {
				t.Fatal(err)
			}
			if _, err := keepTrying(ctx, discard, what, do); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}
