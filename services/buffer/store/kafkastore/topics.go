package kafkastore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// Topics are where the shards of a queue are stored, one partition of each topic a shard. Their
// names do not make them the queue's: Queue and Namespace do.
type Topics struct {
	Brokers  []string
	Access   kafkaclient.Access
	ClientID string
	// Name is what the names of both topics begin with: Name.journal and Name.payload.
	Name string
	// Namespace tells deployments apart that use one Kafka cluster, and Queue the queues of one.
	Namespace, Queue string
	// Shards is the number of shards, fixed for good. Further partitions are not shards.
	Shards int
	// Replication is the replication factor at least. With 1 a broker's disk is all there is.
	Replication int
	// Fsync has brokers sync each write to disk before it counts. Without it a power cut of all
	// replicas of a shard at once loses what was answered last. It is for Init only; it suits
	// brokers that serve nothing else.
	Fsync bool
}

const (
	// journalMessageBytes and payloadMessageBytes are what the topics must take at least: a frame,
	// and the largest payload, each with what is around it.
	journalMessageBytes = frameBytes + 64<<10
	payloadMessageBytes = 24 << 20
)

func (t *Topics) journal() string { return t.Name + ".journal" }
func (t *Topics) payload() string { return t.Name + ".payload" }

// Identity is what Init writes at the beginning of each shard's journal, and each snapshot
// repeats.
type Identity struct {
	Namespace string `json:"namespace"`
	Queue     string `json:"queue"`
	// Life is a random name. What is kept elsewhere of a queue, as progress and epochs are, means
	// nothing in another life.
	Life   string `json:"life"`
	Shard  int    `json:"shard"`
	Shards int    `json:"shards"`
	// JournalID and PayloadID are Kafka's ids of the topics, empty where it has none.
	JournalID string `json:"journal_topic_id,omitempty"`
	PayloadID string `json:"payload_topic_id,omitempty"`
	Reader    int    `json:"reader"` // as in barrier
}

// readerVersion is the version of the entries that this package reads and writes.
const readerVersion = 1

// client connects to nothing yet.
func (t *Topics) client() *kafkaclient.Client {
	return kafkaclient.New(t.Brokers, t.ClientID, t.Access)
}

// setting is a setting of a topic that matters.
type setting struct {
	name string
	want string // for people
	ok   func(value string) bool
}

func exactly(name, value string) setting {
	return setting{name, value, func(v string) bool { return v == value }}
}

func atLeast(name string, least int64) setting {
	return setting{name, fmt.Sprintf("%d or more", least), func(v string) bool {
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && n >= least
	}}
}

// settings are what a topic must have. Others lose records, or make clocks matter.
func (t *Topics) settings(topic string) []setting {
	bytes := int64(payloadMessageBytes)
	if topic == t.journal() {
		bytes = journalMessageBytes
	}
	all := []setting{
		exactly("cleanup.policy", "delete"),
		exactly("retention.ms", "-1"),
		exactly("retention.bytes", "-1"),
		exactly("unclean.leader.election.enable", "false"),
		exactly("message.timestamp.type", "LogAppendTime"),
		atLeast("max.message.bytes", bytes),
	}
	if t.Replication > 1 {
		all = append(all, atLeast("min.insync.replicas", 2))
	}
	return all
}

// check compares the topics with what they must be. It returns their ids.
func (t *Topics) check(ctx context.Context, c *kafkaclient.Client) (ids map[string][16]byte, err error) {
	names := []string{t.journal(), t.payload()}
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = false
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		request.Topics = append(request.Topics, topic)
	}
	answer, err := c.Transport().Ask(ctx, request, askTimeout)
	if err != nil {
		return nil, err
	}
	ids = make(map[string][16]byte)
	for _, topic := range answer.(*kmsg.MetadataResponse).Topics {
		if topic.Topic == nil {
			continue
		}
		name := *topic.Topic
		switch err := kerr.ErrorForCode(topic.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			return nil, fmt.Errorf("%w: topic %s does not exist; if this is a new queue, initialize its store", errNoTopic, name)
		case err != nil:
			return nil, fmt.Errorf("read metadata of topic %s: %w", name, err)
		case len(topic.Partitions) < t.Shards:
			return nil, fmt.Errorf("%w: topic %s has %d partitions for %d shards", ErrSettings, name, len(topic.Partitions), t.Shards)
		}
		for _, p := range topic.Partitions {
			if len(p.Replicas) < t.Replication && int(p.Partition) < t.Shards {
				return nil, fmt.Errorf("%w: %s/%d has %d replicas instead of %d", ErrSettings, name, p.Partition, len(p.Replicas), t.Replication)
			}
		}
		ids[name] = topic.TopicID
	}
	for _, name := range names {
		if _, ok := ids[name]; !ok {
			return nil, fmt.Errorf("read metadata of topic %s: the answer does not mention it", name)
		}
	}
	return ids, t.checkSettings(ctx, c, names)
}

func (t *Topics) checkSettings(ctx context.Context, c *kafkaclient.Client, names []string) error {
	request := kmsg.NewPtrDescribeConfigsRequest()
	for _, name := range names {
		r := kmsg.NewDescribeConfigsRequestResource()
		r.ResourceType, r.ResourceName = kmsg.ConfigResourceTypeTopic, name
		request.Resources = append(request.Resources, r)
	}
	answer, err := c.Transport().Ask(ctx, request, askTimeout)
	if err != nil {
		return fmt.Errorf("describe the configuration of topics: %w", err)
	}
	has := make(map[string]map[string]string)
	for _, r := range answer.(*kmsg.DescribeConfigsResponse).Resources {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return fmt.Errorf("describe the configuration of topic %s (the store needs DescribeConfigs on it): %w", r.ResourceName, err)
		}
		has[r.ResourceName] = make(map[string]string)
		for _, c := range r.Configs {
			if c.Value != nil {
				has[r.ResourceName][c.Name] = *c.Value
			}
		}
	}
	var wrong []error
	for _, name := range names {
		for _, s := range t.settings(name) {
			if v, ok := has[name][s.name]; !ok || !s.ok(v) {
				wrong = append(wrong, fmt.Errorf("%w: topic %s has %s=%s; it must be %s", ErrSettings, name, s.name, v, s.want))
			}
		}
	}
	return errors.Join(wrong...)
}

// Init creates the topics of a new queue, with settings that lose nothing, and writes the identity
// of each shard. Topics that are there must be as Open wants them, and empty but for what an Init
// of the same queue has left, whatever was stored since: so it may be called again. It returns the
// queue's life, and whether it has written anything.
func Init(ctx context.Context, t Topics, log *slog.Logger) (life string, made bool, err error) {
	c := t.client()
	defer c.Close()
	for _, name := range []string{t.journal(), t.payload()} {
		if err := t.create(ctx, c, name); err != nil {
			return "", false, err
		}
	}
	ids, err := keepTrying(ctx, log, "describe the topics", func() (map[string][16]byte, error) {
		c.Stale(t.journal(), t.payload())
		ids, err := t.check(ctx, c)
		if errors.Is(err, errNoTopic) { // brokers hear of a new one after the other
			return ids, fmt.Errorf("%v", err) // so this is not final
		}
		return ids, final(err)
	})
	if err != nil {
		return "", false, err
	}
	found, err := t.identities(ctx, c, ids, log)
	if err != nil {
		return "", false, err
	}
	life = newLife()
	for _, id := range found {
		if id != nil {
			life = id.Life
		}
	}
	for shard, there := range found {
		if there != nil {
			continue
		}
		journal, payload := t.logs(c, ids, shard)
		if _, next, err := boundsOf(ctx, payload, log); err != nil {
			return "", false, err
		} else if next > 0 {
			return "", false, fmt.Errorf("%w: %s has %d records already", ErrIdentity, payload.name(), next)
		}
		id := t.identity(ids, shard)
		id.Life = life
		got, err := writeIdentity(ctx, journal, id, log)
		if err != nil {
			return "", false, fmt.Errorf("initialize %s: %w", journal.name(), err)
		}
		life, made = got.Life, true
	}
	return life, made, nil
}

// final marks errors that trying again does not mend.
func final(err error) error {
	if errors.Is(err, ErrSettings) || errors.Is(err, ErrIdentity) || errors.Is(err, kerr.TopicAuthorizationFailed) {
		return fmt.Errorf("%w: %w", errDefinite, err)
	}
	return err
}

// logs are the partitions of a shard.
func (t *Topics) logs(c *kafkaclient.Client, ids map[string][16]byte, shard int) (journal, payload *kafkaLog) {
	return &kafkaLog{client: c, topic: t.journal(), id: ids[t.journal()], partition: shard, maxBytes: 4 << 20},
		&kafkaLog{client: c, topic: t.payload(), id: ids[t.payload()], partition: shard, maxBytes: 1 << 20}
}

// identity is what the topics of a shard must say, but for the life.
func (t *Topics) identity(ids map[string][16]byte, shard int) *Identity {
	return &Identity{Namespace: t.Namespace, Queue: t.Queue, Shard: shard, Shards: t.Shards,
		JournalID: idText(ids[t.journal()]), PayloadID: idText(ids[t.payload()]), Reader: readerVersion}
}

// identities returns what the journals of all shards say, nil for an empty one. They must be those
// of the queue, and of one life.
func (t *Topics) identities(ctx context.Context, c *kafkaclient.Client, ids map[string][16]byte, log *slog.Logger) ([]*Identity, error) {
	all := make([]*Identity, t.Shards)
	var first *Identity
	for shard := range all {
		journal, _ := t.logs(c, ids, shard)
		id, err := firstIdentity(ctx, journal, log)
		if err == nil && id != nil {
			err = id.check(t.identity(ids, shard))
		}
		if err == nil && id != nil && first != nil && id.Life != first.Life {
			err = fmt.Errorf("%w: shard %d is of the life %s, and shard %d of %s", ErrIdentity, shard, id.Life, first.Shard, first.Life)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", journal.name(), err)
		}
		if all[shard] = id; first == nil {
			first = id
		}
	}
	return all, nil
}

// firstIdentity returns the identity that a journal begins with: that of Init, or the one in the
// snapshot that it was trimmed up to. It is nil when the journal is empty.
func firstIdentity(ctx context.Context, journal partitionLog, log *slog.Logger) (*Identity, error) {
	for {
		first, next, err := boundsOf(ctx, journal, log)
		if err != nil {
			return nil, err
		}
		if next == 0 {
			return nil, nil
		}
		var id *Identity
		_, err = keepTrying(ctx, log, "read the journal", func() (int64, error) {
			at, err := journal.read(ctx, first, func(offset int64, r record) error {
				if offset != first || id != nil {
					return nil
				}
				f, err := parseFrame(r.key, r.value)
				if err == nil && f.kind != identityFrame && (f.kind != snapshotFrame || f.flags&firstFlag == 0) {
					err = fmt.Errorf("%w: the journal begins with a record of the kind %q", ErrIdentity, f.kind)
				}
				if err == nil {
					id, err = identityOf(f.value)
				} else if errors.Is(err, errNoFrame) {
					err = fmt.Errorf("%w: somebody else has written to it: %w", errForeign, err)
				}
				return err
			})
			if err == nil && id == nil && at == first {
				err = errors.New("nothing can be read yet")
			}
			return at, err
		})
		if errors.Is(err, errTrimmed) {
			continue
		}
		if err == nil && id == nil {
			err = fmt.Errorf("%w: the first record of the journal is missing", ErrGap)
		}
		return id, err
	}
}

// create makes sure that a topic exists.
func (t *Topics) create(ctx context.Context, c *kafkaclient.Client, name string) error {
	settings := map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "unclean.leader.election.enable": "false",
		"message.timestamp.type": "LogAppendTime", "max.message.bytes": strconv.Itoa(max(1<<20, payloadMessageBytes)), "min.insync.replicas": "1"}
	if name == t.journal() {
		settings["max.message.bytes"] = strconv.Itoa(1 << 20)
		settings["segment.bytes"] = strconv.Itoa(64 << 20)
	}
	if t.Replication > 1 {
		settings["min.insync.replicas"] = "2"
	}
	if t.Fsync {
		settings["flush.messages"] = "1"
	}
	_, err := c.Transport().CreateTopicWith(ctx, name, t.Shards, t.Replication, settings, 2*askTimeout)
	return err
}

// writeIdentity writes the first record of a journal, or returns the one that an earlier attempt
// has written for the same shard of the same queue.
func writeIdentity(ctx context.Context, journal partitionLog, id *Identity, log *slog.Logger) (*Identity, error) {
	_, next, err := boundsOf(ctx, journal, log)
	if err != nil {
		return nil, err
	}
	if next == 0 {
		body, err := json.Marshal(id)
		if err != nil {
			return nil, err
		}
		f := frame{kind: identityFrame, flags: firstFlag | lastFlag, epoch: -1, value: appendEntry(nil, identityEntry, nil, body)}
		if next, err = keepTrying(ctx, log, "write the identity", func() (int64, error) {
			at, err := journal.produce(ctx, []record{{f.key(), f.value}})
			return at + 1, err
		}); err != nil {
			return nil, err
		}
	}
	return readIdentity(ctx, journal, id, next, log)
}

// readIdentity returns what the first records up to next say, which must all be the identity.
func readIdentity(ctx context.Context, journal partitionLog, want *Identity, next int64, log *slog.Logger) (*Identity, error) {
	var got *Identity
	for from := int64(0); from < next; {
		at, err := keepTrying(ctx, log, "read the journal", func() (int64, error) {
			return journal.read(ctx, from, func(offset int64, r record) error {
				f, err := parseFrame(r.key, r.value)
				if err != nil || f.kind != identityFrame {
					return errors.Join(fmt.Errorf("%w: the journal is in use", ErrIdentity), err)
				}
				if got == nil {
					got, err = identityOf(f.value)
				}
				return err
			})
		})
		if err != nil {
			return nil, err
		}
		from = at
	}
	if got == nil {
		return nil, fmt.Errorf("%w: it has no identity", ErrIdentity)
	}
	return got, got.check(want)
}

// identityOf reads a stream that is one identity.
func identityOf(stream []byte) (*Identity, error) {
	e, _, ok, err := cutEntry(stream)
	if err != nil || !ok || e.kind != identityEntry {
		return nil, errors.Join(err, fmt.Errorf("%w: it does not begin with an identity", ErrIdentity))
	}
	return parseIdentity(e.body)
}

func parseIdentity(body []byte) (*Identity, error) {
	var id Identity
	if err := json.Unmarshal(body, &id); err != nil {
		return nil, fmt.Errorf("%w: its identity cannot be read: %w", ErrIdentity, err)
	}
	return &id, nil
}

// check returns an error when the identity is not the wanted one, whatever its life.
func (id *Identity) check(want *Identity) error {
	switch {
	case id.Reader > readerVersion:
		return fmt.Errorf("%w: version %d is needed to read it, this is version %d", ErrVersion, id.Reader, readerVersion)
	case id.Namespace != want.Namespace || id.Queue != want.Queue:
		return fmt.Errorf("%w: they belong to queue %q of namespace %q, not to queue %q of %q", errForeign, id.Queue, id.Namespace, want.Queue, want.Namespace)
	case id.Shards != want.Shards:
		return fmt.Errorf("%w: the queue was created with %d shards; that many it keeps, and %d are configured", errForeign, id.Shards, want.Shards)
	case id.Shard != want.Shard:
		return fmt.Errorf("%w: the journal of shard %d is in the partition of shard %d", ErrIdentity, id.Shard, want.Shard)
	case id.JournalID != want.JournalID || id.PayloadID != want.PayloadID:
		return fmt.Errorf("%w: the queue was created in topics with the ids %s (journal) and %s (payload), these are %s and %s: they were mirrored, restored, or one was created again",
			ErrReplaced, id.JournalID, id.PayloadID, want.JournalID, want.PayloadID)
	}
	return nil
}

func newLife() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func idText(id [16]byte) string {
	if id == ([16]byte{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}
