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

// mark is what that file has.
type mark struct {
	Topic   string   `json:"topic"`
	Brokers []string `json:"brokers"`
	// Export is the Moved.ID of a move to the directory that has begun.
	Export string `json:"export,omitempty"`
	// Imported says that Kafka has all of what the directory may still have.
	Imported bool `json:"imported,omitempty"`
}

// readMark reads the mark of a directory, if there is one.
func readMark(path string) (in mark, there bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return in, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &in)
	}
	if err != nil {
		return in, false, fmt.Errorf("read %s: %w", path, err)
	}
	return in, true, nil
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
	in, marked, err := readMark(path)
	if err != nil {
		return err
	}
	if m.kafka == nil {
		if !marked {
			return nil
		}
		return fmt.Errorf("%w: it was in the topics %s.* of %v, and what they have would be delivered by nobody; put store.kafka back, and move it to data_dir with spillway store export %s, "+
			"or, when nothing is pending there and the offsets are committed, remove %s", errOtherPlace, in.Topic, in.Brokers, m.name, path)
	}
	if !marked && nutsstore.IsStore(m.dir) {
		return fmt.Errorf("%w: %s has data of the queue, which would be delivered by nobody; stop the buffer, and move it to Kafka with spillway store import %s", errOtherPlace, m.dir, m.name)
	}
	now := mark{Topic: m.kafka.Topics.Name, Brokers: m.kafka.Topics.Brokers, Imported: in.Imported}
	if marked && in.sameTopics(now) {
		return nil // Kafka says whether the queue is whole there
	}
	return writeMark(path, now)
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
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
