package config

import "time"

// The defaults of every key that has one. The decoder calls setDefaults on each part it makes,
// before it reads the part's keys, so that a written zero is not taken for an absent key.

func (c *Config) setDefaults() {
	c.Buffers = []string{"localhost:7400"}
	c.Ingest = Ingest{Listen: unset, HTTP: unset, Memory: 64 * MiB}
	c.Buffer = Buffer{Listen: unset, HTTP: unset}
	c.Security.setDefaults()
}

func (s *Source) setDefaults() {
	s.Start = "earliest"
	s.Isolation = "read_committed"
	s.Batch = Batch{Records: 1000, Bytes: 1 * MiB, Linger: 50 * time.Millisecond}
}

func (q *Queue) setDefaults() {
	q.Memory = Bounds{Records: 1_000_000, Bytes: 128 * MiB}
	q.Disk = Bounds{Records: 100_000_000, Bytes: 100 * GiB}
	q.SpillAfter = time.Second
	q.CommitAfter = "safe"
	q.Shards = 1
	q.Lease = 30 * time.Second
}

func (k *KafkaStore) setDefaults() {
	k.Replication = 3
	k.Owners = "fixed"
	k.SessionTimeout = 10 * time.Second
}

// setTopics waits for the namespaces to be known.
func (b *Buffer) setTopics() {
	for name, q := range b.Queues {
		if k := q.Store.Kafka; k != nil && k.Topic == "" && k.Namespace != "" {
			k.Topic = "spillway." + k.Namespace + "." + name
		}
	}
}

func (s *Subscription) setDefaults() {
	s.Topics = []string{"*"}
	s.OnFull = "block"
	s.Required = true
}

func (d *Delivery) setDefaults() {
	d.Listen, d.HTTP = unset, unset
	d.Memory = 48 * MiB
}

// setOrdering waits for the destination to be known.
func (d *Delivery) setOrdering() {
	switch {
	case d.Ordering != "":
	case d.Kafka != nil:
		d.Ordering = "partition"
	default:
		d.Ordering = "none"
	}
}

func (h *HDFS) setDefaults() {
	h.FilePrefix = "spillway"
	h.InUseSuffix = ".tmp"
	h.OnDenied = "wait"
	h.TimeFrom = "record"
	h.RoundValue = 1
	h.RoundUnit = "second"
	h.Roll = Roll{Interval: time.Hour, Size: 128 * MiB, Idle: time.Minute}
	h.MaxOpenFiles = 500
	h.Sync = "flush"
	h.Commit = Commit{Bytes: 16 * MiB, Interval: time.Second}
	h.Serializer = "text"
	h.Compression = "none"
	h.SequenceValue = "bytes"
	h.AppendNewline = true
}

func (s *SASL) setDefaults() {
	s.Krb5Conf = "/etc/krb5.conf"
	s.ServiceName = "kafka"
}

func (m *Manifest) setDefaults() {
	m.URL = "file:///var/lib/spillway/manifest"
}

func (k *Kerberos) setDefaults() {
	k.Krb5Conf = "/etc/krb5.conf"
}

func (k *Kafka) setDefaults() {
	k.Topic = "%{topic}"
	k.Partitioner = "source"
	k.Compression = "none"
	k.MissingTopic = "broker"
	k.NewTopic = NewTopic{Partitions: -1, Replication: -1}
	k.OnRejected = "dead_letter"
	k.OnDenied = "wait"
}
