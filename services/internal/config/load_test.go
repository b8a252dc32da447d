package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the .err files from what Parse says")

// TestDesign loads the example of the design as it is written there.
func TestDesign(t *testing.T) {
	got, err := Parse("spillway.yaml", readFile(t, "testdata/design.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	complete := &Config{
		file:     "spillway.yaml",
		Buffers:  []string{"buffer:7400"},
		Security: Security{Insecure: true, Limits: Limits{Connections: 256, Streams: 512, Sessions: 256, Bytes: 64 * MiB}},
		Ingest: Ingest{
			Listen: ":7410", HTTP: ":7411", Memory: 64 * MiB,
			Sources: map[string]*Source{"s": {
				Brokers: []string{"kafka:9092"}, Group: "group1", Topics: []string{"originTopic"}, Start: "earliest", Isolation: "read_committed", Queue: "c",
				Batch: Batch{Records: 1000, Bytes: MiB, Linger: 50 * time.Millisecond},
			}},
		},
		Buffer: Buffer{
			Listen: ":7400", HTTP: ":7401", DataDir: "/var/lib/spillway",
			Queues: map[string]*Queue{"c": {
				Memory: Bounds{Records: 10000, Bytes: 64 * MiB}, Disk: Bounds{Records: 100000000, Bytes: 100 * GiB},
				SpillAfter: time.Second, CommitAfter: "safe", Shards: 1, Lease: 30 * time.Second,
				Subscriptions: map[string]*Subscription{
					"hdfs": {Topics: []string{"*"}, OnFull: "block", Required: true},
					"test": {Topics: []string{"originTopic"}, OnFull: "drop_oldest", Limit: 20 * GiB},
				},
			}},
		},
		Delivery: map[string]*Delivery{
			"k": {
				Listen: ":7420", HTTP: ":7421", Subscription: "c/hdfs", Ordering: "none", Memory: 48 * MiB,
				HDFS: &HDFS{
					URL: "hdfs://namenode:8020", Path: "/user/flume/%{topic}/%Y-%m-%d", FilePrefix: "%H", FileSuffix: ".log", InUseSuffix: ".tmp",
					TimeFrom: "record", RoundValue: 1, RoundUnit: "second", OnDenied: "wait",
					Roll:         Roll{Interval: time.Hour, Size: 127 * MiB, Idle: 30 * time.Second},
					MaxOpenFiles: 500, Sync: "flush", Commit: Commit{Bytes: 16 * MiB, Interval: time.Second}, Serializer: "avro_event", Compression: "none", SequenceValue: "bytes", AppendNewline: true,
				},
			},
			"t": {
				Listen: ":7420", HTTP: ":7421", Subscription: "c/test", Ordering: "partition", Memory: 48 * MiB,
				Kafka: &Kafka{Brokers: []string{"kafka-test:9092"}, Topic: "%{topic}", Partitioner: "source", Compression: "none",
					MissingTopic: "broker", NewTopic: NewTopic{-1, -1}, OnRejected: "dead_letter", OnDenied: "wait"},
			},
		},
	}
	assertEqual(t, got, complete)
}

func TestComposeFilesAreAccepted(t *testing.T) {
	for _, name := range []string{"spillway.yaml", "spillway-secure.yaml", "spillway-cluster.yaml"} {
		c, err := Parse(name, readFile(t, "../../../deploy/compose/"+name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.ForIngest(), c.ForBuffer()); err != nil {
			t.Error(err)
		}
	}
}

// TestProblems compares what Parse says of testdata/NAME.yaml with testdata/NAME.err. Lines that
// begin with "# env: " are the environment. Without a .err file there must be no problem.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data := readFile(t, file)
			_, err := Parse("spillway.yaml", data, environOf(data))
			got := ""
			if err != nil {
				got = err.Error() + "\n"
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".err"
			if *update && got != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("problems are\n%swant\n%s", got, want)
			}
		})
	}
}

func environOf(data []byte) []string {
	var environ []string
	for line := range strings.Lines(string(data)) {
		if variable, ok := strings.CutPrefix(line, "# env: "); ok {
			environ = append(environ, strings.TrimRight(variable, "\n"))
		}
	}
	return environ
}

func TestEmptyFileHasDefaults(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "ingest:\nbuffer:\ndelivery:\n"} {
		got, err := Parse("spillway.yaml", []byte(text), nil)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if got.Buffers[0] != "localhost:7400" || got.Ingest.HTTP != "localhost:7411" || got.Buffer.Listen != "localhost:7400" {
			t.Errorf("%q: %+v has not the defaults", text, got)
		}
	}
}

func TestMergedKeys(t *testing.T) {
	c, err := Parse("spillway.yaml", readFile(t, "testdata/anchors.yaml"), []string{"SPILLWAY_BUFFER__QUEUES__B__MEMORY__RECORDS=700"})
	if err != nil {
		t.Fatal(err)
	}
	a, b := c.Buffer.Queues["a"], c.Buffer.Queues["b"]
	if a.Memory != (Bounds{500, MiB}) || a.SpillAfter != 2*time.Second || a.CommitAfter != "delivered" {
		t.Errorf("queue a is %+v", a)
	}
	// Changing one user of an anchor leaves the others alone.
	if b.Memory != (Bounds{700, MiB}) || b.SpillAfter != 5*time.Second || b.CommitAfter != "delivered" {
		t.Errorf("queue b is %+v", b)
	}
}

func TestEnvironment(t *testing.T) {
	file := "buffer: {data_dir: /a, queues: {my-queue: {subscriptions: {x: }}}}"
	c, err := Parse("spillway.yaml", []byte(file), []string{
		"HOME=/root",
		"SPILLWAY_CONFIG=/etc/spillway.yaml",
		"SPILLWAY_CONTEXT=prod",
		"SPILLWAY_LOG_LEVEL=debug",
		"SPILLWAY_BUFFER_SERVICE_HOST=10.0.0.1",
		"SPILLWAY_BUFFER_SERVICE_PORT_GRPC=7400",
		"SPILLWAY_BUFFER_PORT=tcp://10.0.0.1:7400",
		"SPILLWAY_BUFFER_PORT_7400_TCP_ADDR=10.0.0.1",
		"SPILLWAY_SECURITY__INSECURE=true",
		"SPILLWAY_BUFFERS= b1:7400, ",
		"SPILLWAY_INGEST__SOURCES__S__BROKERS=k1:9092, k2:9092",
		"SPILLWAY_INGEST__SOURCES__S__GROUP=g",
		"SPILLWAY_INGEST__SOURCES__S__TOPICS=t",
		"SPILLWAY_INGEST__SOURCES__S__QUEUE=my-queue",
		"SPILLWAY_BUFFER__DATA_DIR=/b=c",
		"SPILLWAY_BUFFER__QUEUES__MY_QUEUE__SUBSCRIPTIONS__X__REQUIRED=false",
		"SPILLWAY_BUFFER__QUEUES__MY_QUEUE__DISK__BYTES=1GiB",
		"SPILLWAY_DELIVERY__NEW__SUBSCRIPTION=my-queue/x",
		"SPILLWAY_DELIVERY__NEW__HDFS__URL=file:///tmp/out",
		"SPILLWAY_DELIVERY__NEW__HDFS__PATH=/%{topic}",
	})
	if err != nil {
		t.Fatal(err)
	}
	assertEqual(t, c.Buffers, []string{"b1:7400"})
	assertEqual(t, c.Ingest.Sources["s"].Brokers, []string{"k1:9092", "k2:9092"})
	if c.Buffer.DataDir != "/b=c" {
		t.Errorf("data_dir is %q", c.Buffer.DataDir)
	}
	q := c.Buffer.Queues["my-queue"]
	if q.Subscriptions["x"].Required || q.Disk != (Bounds{100_000_000, GiB}) {
		t.Errorf("queue is %+v", q)
	}
	d, err := c.ForDelivery("new")
	if err != nil || d.HDFS.URL != "file:///tmp/out" || d.HDFS.InUseSuffix != ".tmp" {
		t.Errorf("delivery is %+v, %v", d, err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(path, []byte("buffers: [b:1]\nsecurity: {insecure: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPILLWAY_BUFFER__DATA_DIR", "/data")
	c, err := Load(path)
	if err != nil || c.Buffer.DataDir != "/data" || c.Buffers[0] != "b:1" {
		t.Errorf("Load gives %+v, %v", c, err)
	}
	if _, err := Load(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file gives %v", err)
	}
}

func TestServicesSayWhatTheyMiss(t *testing.T) {
	parse := func(text string) *Config {
		t.Helper()
		c, err := Parse("p.yaml", []byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	errText := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	ingest := parse("ingest: {sources: {s: {brokers: [k:1], group: g, topics: [t], queue: elsewhere}}}")
	buffer := parse("buffer: {queues: {q: {subscriptions: {s: }}}}")
	delivery := parse("delivery: {copy: {subscription: else/where, kafka: {brokers: [k:1]}}, files: {subscription: else/there, hdfs: {url: file:///x, path: /}}}")
	forDelivery := func(c *Config, name string) string { _, err := c.ForDelivery(name); return errText(err) }
	for _, test := range []struct{ got, want string }{
		{errText(ingest.ForIngest()), ""},
		{errText(buffer.ForIngest()), "p.yaml: ingest.sources is missing; want at least one source to read"},
		{errText(ingest.ForBuffer()), "p.yaml: buffer.queues is missing; want at least one queue to keep"},
		{errText(buffer.ForBuffer()), "p.yaml: buffer.data_dir is missing; want a directory such as /var/lib/spillway"},
		{forDelivery(delivery, "copy"), ""},
		{forDelivery(delivery, "cpoy"), `p.yaml: no delivery "cpoy"; did you mean "copy"?`},
		{forDelivery(delivery, "t"), `p.yaml: no delivery "t"; there is copy, files`},
		{forDelivery(ingest, "t"), "p.yaml: delivery is missing; want at least one delivery"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	buffer.Buffer.DataDir = "/x"
	if err := buffer.ForBuffer(); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data := readFile(f, file)
		f.Add(data, strings.Join(environOf(data), "\n"))
	}
	f.Fuzz(func(t *testing.T, data []byte, environ string) {
		c, err := Parse("f.yaml", data, strings.Split(environ, "\n"))
		if (c == nil) == (err == nil) {
			t.Fatalf("Parse returned %v and %v", c, err)
		}
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("error is %#v, want Problems", err)
			}
			return
		}
		// What is accepted is complete.
		for name, d := range c.Delivery {
			if (d.HDFS == nil) == (d.Kafka == nil) || d.Subscription == "" || d.Ordering == "" {
				t.Errorf("delivery %s was accepted: %+v", name, d)
			}
		}
		for name, s := range c.Ingest.Sources {
			if len(s.Brokers) == 0 || len(s.Topics) == 0 || s.Group == "" || s.Batch.Bytes <= 0 || s.Batch.Bytes > maxBatchBytes {
				t.Errorf("source %s was accepted: %+v", name, s)
			}
		}
		for name, q := range c.Buffer.Queues {
			if len(q.Subscriptions) == 0 || q.Memory.Bytes <= 0 || q.Lease <= 0 {
				t.Errorf("queue %s was accepted: %+v", name, q)
			}
		}
	})
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func assertEqual(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%#v\nwant\n%#v", got, want)
	}
}
