package buffer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// A queue is kept in its directory, or in Kafka. What one of them has, the other does not know: so
// whoever changes the place is told what to do first, in both directions.

// markName is the file in the directory of a queue that says that it is kept in Kafka.
const markName = "kept-in-kafka.json"

// mark is what that file has, for people.
type mark struct {
	Topic   string   `json:"topic"`
	Brokers []string `json:"brokers"`
}

// keepInKafka has a queue kept as its configuration says.
func (s *Service) keepInKafka(m *managedQueue, q *config.Queue) error {
	access, err := kafkaclient.NewAccess(q.Store.Kafka.TLS, q.Store.Kafka.SASL, s.deps.Log)
	if err != nil {
		return fmt.Errorf("buffer.queues.%s.store.kafka: %w", m.name, err)
	}
	s.accesses = append(s.accesses, access)
	m.cfg.KeepsOld, m.cfg.Numbered, m.cfg.Revision = true, true, q.Revision
	m.kafka = &kafkastore.Config{Topics: KafkaTopics(m.name, q, access), Address: s.advertise, Log: s.deps.Log.With("queue", m.name)}
	if q.InGroup() {
		s.joinGroup(m, q, access)
	}
	return nil
}

// KafkaTopics are those of a queue that is kept in Kafka.
func KafkaTopics(name string, q *config.Queue, access kafkaclient.Access) kafkastore.Topics {
	k := q.Store.Kafka
	return kafkastore.Topics{Brokers: k.Brokers, Access: access, ClientID: "spillway-buffer", Name: k.Topic, Namespace: k.Namespace, Queue: name,
		Shards: max(q.Shards, 1), Replication: k.Replication}
}

// addressOf is about where a buffer that listens there is reached, for people.
func addressOf(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil || host != "" {
		return listen
	}
	if host, err = os.Hostname(); err != nil {
		return listen
	}
	return net.JoinHostPort(host, port)
}

var errOtherPlace = errors.New("the queue is kept elsewhere")

// checkPlace refuses to open a queue here when its data is in the other place.
func (m *managedQueue) checkPlace() error {
	if m.dir == "" {
		return nil
	}
	path := filepath.Join(m.dir, markName)
	if m.kafka == nil {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		var in mark
		if err == nil {
			err = json.Unmarshal(b, &in)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		return fmt.Errorf("%w: it was in the topics %s.* of %v, and what they have would be delivered by nobody; put store.kafka back, or, when nothing is pending there "+
			"and the offsets are committed, remove %s", errOtherPlace, in.Topic, in.Brokers, path)
	}
	if nutsstore.IsStore(m.dir) {
		return fmt.Errorf("%w: %s has data of the queue, which would be delivered by nobody; take store.kafka out again, pause the sources, wait until nothing is pending "+
			"and the offsets are committed, stop the buffer, and remove the directory", errOtherPlace, m.dir)
	}
	return writeMark(path, mark{m.kafka.Topics.Name, m.kafka.Topics.Brokers})
}

// writeMark makes a file durable before the queue is used in Kafka. One that is there stays.
func writeMark(path string, m mark) (err error) {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if there, err := os.ReadFile(path); err == nil && string(there) == string(b) {
		return nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mark the directory of a queue that is kept in Kafka: %w", err)
	}
	f, err := os.CreateTemp(dir, markName+".*")
	if err != nil {
		return fmt.Errorf("mark the directory of a queue that is kept in Kafka: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mark the directory of a queue that is kept in Kafka: %w", err), os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
