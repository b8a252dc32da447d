// Package config is the one YAML file that describes a pipeline. Load reads it strictly: an
// unknown key or an impossible value is an error that names file, line and key, and nothing
// starts. All that is wrong is said at once.
//
// A file is read in four steps: into a tree without anchors and merges (tree.go), which the
// variables of the environment change (env.go), from the tree into a Config that has the defaults
// (decode.go, defaults.go), which is checked as a whole (check.go). Each step goes on after a
// problem, and a key with a problem is not blamed again by a later step.
package config

import "time"

// Config is the whole file. Every service reads the parts it needs.
type Config struct {
	// Buffers are the gRPC addresses of all buffers, in any order, as ingest and deliveries reach
	// them.
	Buffers []string `yaml:"buffers"`
	Ingest  Ingest   `yaml:"ingest"`
	Buffer  Buffer   `yaml:"buffer"`
	// Delivery has one entry per `spillway delivery NAME`.
	Delivery map[string]*Delivery `yaml:"delivery"`
	Security Security             `yaml:"security"`

	file     string // for messages
	warnings Problems
}

// Ingest is what `spillway ingest` reads.
type Ingest struct {
	Listen string `yaml:"listen"` // gRPC address
	HTTP   string `yaml:"http"`   // metrics and health address
	// Memory bounds the bytes fetched from Kafka and not yet accepted by the buffer.
	Memory  ByteSize           `yaml:"memory"`
	Sources map[string]*Source `yaml:"sources"`
}

// Source is a set of topics of one Kafka cluster, read as one consumer group into one queue.
type Source struct {
	Brokers []string `yaml:"brokers"`
	TLS     *TLS     `yaml:"tls"`  // nil: not encrypted
	SASL    *SASL    `yaml:"sasl"` // nil: not authenticated
	Group   string   `yaml:"group"`
	// Topics are names, or regular expressions after TopicPattern, of the topics to read.
	Topics []string `yaml:"topics"`
	// Start is where a partition begins that neither the buffer nor Kafka's group knows:
	// earliest, latest or a time (RFC 3339).
	Start string `yaml:"start"`
	// Isolation is read_committed or read_uncommitted; the latter also reads records of aborted
	// transactions.
	Isolation string `yaml:"isolation"`
	Queue     string `yaml:"queue"`
	Batch     Batch  `yaml:"batch"`
}

// TopicPattern begins those of Source.Topics that are regular expressions (RE2), which match
// whole names. Topics that are created later are picked up; Kafka's internal ones never are.
const TopicPattern = "re:"

// TLS is how connections to brokers are encrypted. All files are PEM, and read again when they
// change.
type TLS struct {
	CA   string `yaml:"ca"`   // file of the authorities to trust; empty: the system's
	Cert string `yaml:"cert"` // file of the client's certificate; empty: none
	Key  string `yaml:"key"`  // file of its key
	// ServerName is what the brokers' certificates must be for; empty: the host that is connected
	// to.
	ServerName string `yaml:"server_name"`
}

// SASL is how a client authenticates to brokers.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI (Kerberos).
	Mechanism string `yaml:"mechanism"`
	Username  string `yaml:"username"` // of PLAIN and SCRAM
	Password  string `yaml:"password" secret:"true"`
	// SecretFile has the password, or OAUTHBEARER's token, in the place of Password. It is read
	// for every connection.
	SecretFile string `yaml:"secret_file"`

	// Of GSSAPI. Principal is name@REALM or name/host@REALM, as Kerberos.Principal; the files are
	// read again for each login.
	Principal string `yaml:"principal"`
	Keytab    string `yaml:"keytab"`
	Krb5Conf  string `yaml:"krb5_conf"`
	// ServiceName is the first part of the brokers' principals, as Kafka's
	// sasl.kerberos.service.name; the second is the host in the broker's address.
	ServiceName string `yaml:"service_name"`
}

// Batch bounds a batch; the first bound reached ends it.
type Batch struct {
	Records int           `yaml:"records"`
	Bytes   ByteSize      `yaml:"bytes"`
	Linger  time.Duration `yaml:"linger"`
}

// Buffer is what `spillway buffer` reads.
type Buffer struct {
	Listen string `yaml:"listen"`
	HTTP   string `yaml:"http"`
	// Advertise is where other buffers reach this one; empty: at Listen, or there on this host.
	Advertise string `yaml:"advertise"`
	DataDir   string `yaml:"data_dir"`
	// Shard is the one that this buffer has of each queue that has so many.
	Shard  int               `yaml:"shard"`
	Queues map[string]*Queue `yaml:"queues"`
}

// Queue bounds one queue and names its subscriptions.
type Queue struct {
	// Memory is the window: batches not yet on disk, or still wanted by a fast subscription.
	Memory Bounds `yaml:"memory"`
	// Disk bounds the store; when it is full, ingest is held back.
	Disk Bounds `yaml:"disk"`
	// SpillAfter is how old a batch gets in memory before it is written to disk; 0 writes it
	// through.
	SpillAfter time.Duration `yaml:"spill_after"`
	// CommitAfter is safe (what the store has counts) or delivered (only delivery counts).
	CommitAfter string `yaml:"commit_after"`
	// Shards is how many buffers divide the queue's source partitions among them. It never
	// changes.
	Shards int `yaml:"shards"`
	// Revision numbers Disk and Subscriptions of a queue that is kept in Kafka: only what has a
	// higher one than what counted last replaces it.
	Revision int64 `yaml:"revision"`
	// Lease is how long a delivery may hold a batch without a sign of life.
	Lease time.Duration `yaml:"lease"`
	// Store is where the queue's ledger and its batches are.
	Store         Store                    `yaml:"store"`
	Subscriptions map[string]*Subscription `yaml:"subscriptions"`
}

// Store is where a queue is kept, when that is not Buffer.DataDir.
type Store struct {
	Kafka *KafkaStore `yaml:"kafka"` // nil: in Buffer.DataDir
}

// KafkaStore are two topics that have a queue: its ledger, and the batches that were spilled.
type KafkaStore struct {
	Brokers []string `yaml:"brokers"`
	TLS     *TLS     `yaml:"tls"`
	SASL    *SASL    `yaml:"sasl"`
	// Namespace tells pipelines apart that use one Kafka: it is in the topics, and must be the
	// same.
	Namespace string `yaml:"namespace"`
	// Topic is what the names of the topics begin with: .journal and .payload follow.
	Topic string `yaml:"topic"`
	// Replication is how many replicas the topics must have at least.
	Replication int `yaml:"replication"`
	// Owners is fixed (Buffer.Shard names the owner of a shard) or group (Kafka's group protocol
	// gives shards to buffers).
	Owners string `yaml:"owners"`
	// SessionTimeout is after what silence the group gives a buffer's shard to another one.
	SessionTimeout time.Duration `yaml:"session_timeout"`
}

// InGroup says whether a group of the buffers gives the queue's shards to them.
func (q *Queue) InGroup() bool { return q.Store.Kafka != nil && q.Store.Kafka.Owners == "group" }

// Topics are the names of both topics.
func (k *KafkaStore) Topics() []string { return []string{k.Topic + ".journal", k.Topic + ".payload"} }

// Bounds are limits in records and payload bytes; both hold.
type Bounds struct {
	Records int64    `yaml:"records"`
	Bytes   ByteSize `yaml:"bytes"`
}

// Subscription is one destination's claim on a queue.
type Subscription struct {
	// Topics are globs (path.Match) of topics it wants.
	Topics []string `yaml:"topics"`
	// Headers are what the headers of the records that it wants must be, all of it.
	Headers []HeaderFilter `yaml:"headers"`
	// OnFull is block, drop_oldest or defer.
	OnFull string `yaml:"on_full"`
	// Limit bounds its backlog in bytes; 0 is the queue's disk bound.
	Limit ByteSize `yaml:"limit"`
	// Required says whether offsets wait for it before they are committed to Kafka.
	Required bool `yaml:"required"`
}

// Delivery is what `spillway delivery NAME` reads: a subscription and exactly one destination.
type Delivery struct {
	Listen string `yaml:"listen"`
	HTTP   string `yaml:"http"`
	// Subscription is "queue/subscription".
	Subscription string `yaml:"subscription"`
	// Ordering is partition or none; the default is none for hdfs and partition for kafka.
	Ordering string `yaml:"ordering"`
	// Memory bounds the payload bytes leased and not yet acked.
	Memory ByteSize `yaml:"memory"`
	// Transforms change or leave out records, in this order.
	Transforms []Transform `yaml:"transforms"`
	HDFS       *HDFS       `yaml:"hdfs"`
	Kafka      *Kafka      `yaml:"kafka"`
	// Manifest is a delivery of checksums. HDFS is then what writes them.
	Manifest *Manifest `yaml:"manifest"`
	// DeadLetterTopic gets copies of dead letters; nil: only the buffer keeps them.
	DeadLetterTopic *DeadLetterTopic `yaml:"dead_letter_topic"`
}

// DeadLetterTopic is where copies of dead letters go, with headers as Kafka Connect has them.
type DeadLetterTopic struct {
	Brokers []string `yaml:"brokers"`
	TLS     *TLS     `yaml:"tls"`  // nil: not encrypted
	SASL    *SASL    `yaml:"sasl"` // nil: not authenticated
	Topic   string   `yaml:"topic"`
}

// HDFS is a delivery to files, on HDFS or a local directory.
type HDFS struct {
	// URL is hdfs://namenode:8020 (several NameNodes separated by commas), hdfs://nameservice,
	// hdfs:/// (both as Hadoop's files have it) or file:///absolute/dir.
	URL string `yaml:"url"`
	// ConfDir has Hadoop's core-site.xml and hdfs-site.xml; empty is $HADOOP_CONF_DIR where URL
	// needs one.
	ConfDir string `yaml:"conf_dir"`
	// User acts on HDFS; empty is $HADOOP_USER_NAME, else the process's user. With Kerberos it is
	// the principal's.
	User     string    `yaml:"user"`
	Kerberos *Kerberos `yaml:"kerberos"` // nil: no authentication
	// DataTransferProtection is authentication, integrity or privacy; empty is ConfDir's, else
	// what the NameNode asks for.
	DataTransferProtection string   `yaml:"data_transfer_protection"`
	Replication            int      `yaml:"replication"` // of files; 0 is ConfDir's, else the NameNode's default
	BlockSize              ByteSize `yaml:"block_size"`  // of files; 0 is as with Replication
	// Umask is octal: what is taken from 0666 of files and 0777 of directories; empty is
	// ConfDir's, else 022.
	Umask string `yaml:"umask"`
	// Path is the directory template below the URL, with %{topic}, %{header} and strftime escapes.
	Path        string `yaml:"path"`
	FilePrefix  string `yaml:"file_prefix"` // template
	FileSuffix  string `yaml:"file_suffix"`
	InUsePrefix string `yaml:"in_use_prefix"`
	InUseSuffix string `yaml:"in_use_suffix"`
	// TimeZone of the escapes: an IANA name; empty is the process's local zone.
	TimeZone string `yaml:"time_zone"`
	// TimeFrom is record (its header timestamp, else Kafka's), kafka, or local (now).
	TimeFrom string `yaml:"time_from"`
	// Round makes the time of the escapes a multiple of RoundValue RoundUnits: second, minute or
	// hour.
	Round      bool   `yaml:"round"`
	RoundValue int64  `yaml:"round_value"`
	RoundUnit  string `yaml:"round_unit"`
	Roll       Roll   `yaml:"roll"`
	// MaxOpenFiles bounds the in-use files of this instance; the least recently used one is
	// rolled.
	MaxOpenFiles int `yaml:"max_open_files"`
	// Sync is flush or disk: where a commit is on every DataNode, in the memory of its operating
	// system or on its disk.
	Sync string `yaml:"sync"`
	// Commit bounds how much is collected before it is written to files and acked.
	Commit     Commit `yaml:"commit"`
	Serializer string `yaml:"serializer"` // a key of compressions
	// Compression is one of those of the serializer.
	Compression string `yaml:"compression"`
	// SequenceValue is what the values of a sequence_file are: bytes (BytesWritable) or text
	// (Text).
	SequenceValue string `yaml:"sequence_value"`
	// AvroSchema is a file with the schema of the values of serializer avro.
	AvroSchema string `yaml:"avro_schema"`
	// AppendNewline ends every record of text and header_and_text with a line feed.
	AppendNewline bool `yaml:"append_newline"`
	// OnDenied is wait or dead_letter, for records of directories that take none.
	OnDenied string `yaml:"on_denied"`
	// PlacesLike is the URL whose rules for names count in paths; empty is URL.
	PlacesLike string
	// SuccessAfter is when a directory gets a _SUCCESS: when all partitions have passed the end
	// of its time by this; 0 is never.
	SuccessAfter time.Duration `yaml:"success_after"`
}

// Manifest is a delivery that writes what a delivery to HDFS would write, as checksums of its
// records in directories of the same names.
type Manifest struct {
	// Like is the delivery whose directories and transforms count; empty is the only one of the
	// file that has hdfs.
	Like string `yaml:"like"`
	// URL is where the manifest is written, as that of HDFS.
	URL string `yaml:"url"`
}

// Kerberos is how a delivery authenticates to HDFS. The files are read again for each login.
type Kerberos struct {
	// Principal is name@REALM or name/host@REALM; _HOST is this machine's full name, and the
	// realm may be left to Krb5Conf.
	Principal string `yaml:"principal"`
	Keytab    string `yaml:"keytab"` // file
	Krb5Conf  string `yaml:"krb5_conf"`
	// ServicePrincipal is the NameNodes', such as nn/_HOST@REALM; empty is ConfDir's.
	ServicePrincipal string `yaml:"service_principal"`
}

// Roll says when an in-use file becomes final; 0 is never. The first reached decides.
type Roll struct {
	Interval time.Duration `yaml:"interval"` // since the file was begun
	Size     ByteSize      `yaml:"size"`     // bytes written
	Count    int64         `yaml:"count"`    // records written
	Idle     time.Duration `yaml:"idle"`     // since the last commit to it
}

// Commit says when collected records are made durable; the first bound reached decides.
type Commit struct {
	Bytes    ByteSize      `yaml:"bytes"`
	Interval time.Duration `yaml:"interval"`
}

// Kafka is a delivery to Kafka.
type Kafka struct {
	Brokers []string `yaml:"brokers"`
	TLS     *TLS     `yaml:"tls"`
	SASL    *SASL    `yaml:"sasl"`
	// Topic is a template: literal text, %{topic} and %{header}.
	Topic string `yaml:"topic"`
	// Partitioner chooses the target partition: source (same number, modulo), key, round_robin,
	// or header. Records without the key or header go by source.
	Partitioner     string `yaml:"partitioner"`
	PartitionHeader string `yaml:"partition_header"` // the header's name
	// Compression is none, gzip, snappy, lz4 or zstd.
	Compression string `yaml:"compression"`
	// MissingTopic says who creates a target topic that does not exist: broker (if it is set to),
	// create (this delivery, with NewTopic), or wait (somebody else; the records wait).
	MissingTopic string   `yaml:"missing_topic"`
	NewTopic     NewTopic `yaml:"new_topic"`
	// OnRejected is dead_letter or wait, for records that the brokers refuse: too large or
	// invalid.
	OnRejected string `yaml:"on_rejected"`
	// OnDenied is wait or dead_letter, for records of topics that the delivery may not write to.
	OnDenied string `yaml:"on_denied"`
	// AllowLoop lets records be written to the very topic they were read from, or one that a
	// source reads.
	AllowLoop bool `yaml:"allow_loop"`
	// ExactlyOnce produces in transactions, so that readers of committed records see each record
	// once.
	ExactlyOnce bool `yaml:"exactly_once"`
	// Provenance adds headers with the source position of each record.
	Provenance bool `yaml:"provenance"`
}

// NewTopic is what a topic is created with; -1 is the brokers' default.
type NewTopic struct {
	Partitions  int `yaml:"partitions"`
	Replication int `yaml:"replication"`
}
