package e2e

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hamba/avro/v2/ocf"
	"github.com/parquet-go/parquet-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	formatCommits = 3
	formatRecords = 400 // of each commit: enough for more than one block
)

// formatFile is a file that Hadoop is to read.
type formatFile struct {
	config.HDFS
	path string
}

// TestHadoopReadsFormats writes a file of each serializer and compression to HDFS, in several
// commits, and reads all of them with hdfs dfs -text. Hadoop's own zstd needs its native library,
// which is not in Maven: .zst files are read with zstd-jni instead, which has the decoder of
// Zstandard's authors, and so has Avro.
func TestHadoopReadsFormats(t *testing.T) {
	hdfs := newFS(t, config.HDFS{URL: "hdfs://" + stack.hdfs, User: "hdfs"})
	var files, zstd []*formatFile
	for name, compressions := range map[string]string{
		"text":            "none gzip snappy lz4 bzip2 zstd",
		"header_and_text": "none gzip",
		"json":            "none lz4",
		"avro_event":      "none deflate snappy bzip2 zstd",
		"sequence_file":   "none deflate gzip snappy lz4 bzip2",
	} {
		for compression := range strings.FieldsSeq(compressions) {
			f := &formatFile{HDFS: config.HDFS{Serializer: name, Compression: compression, SequenceValue: "bytes", AppendNewline: true}}
			if name == "text" && compression == "zstd" {
				zstd = append(zstd, f)
				continue
			}
			files = append(files, f)
			if name == "sequence_file" {
				text := *f
				text.SequenceValue = "text"
				files = append(files, &text)
			}
		}
	}
	args := []string{"-text"}
	for _, f := range files {
		f.path = fmt.Sprintf("/e2e/formats/%s/%s-%s", f.Serializer, f.Compression, f.SequenceValue)
		file, err := hdfs.Create(t.Context(), f.path+".tmp", func() {})
		if err != nil {
			t.Fatal(err)
		}
		extension := f.write(t, func(data []byte) {
			if err := file.Commit(t.Context(), data); err != nil {
				t.Fatal(err)
			}
		})
		if err := file.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.path += extension
		if err := hdfs.Rename(t.Context(), strings.TrimSuffix(f.path, extension)+".tmp", f.path); err != nil {
			t.Fatal(err)
		}
		args = append(args, f.path)
	}
	lines := strings.SplitAfter(string(hdfsTool(t, "hdfs-dfs", args...)), "\n")
	for _, f := range files {
		if len(lines) < formatCommits*formatRecords {
			t.Fatalf("of %s there are only %d lines, the last one %.100q", f.path, len(lines), lines[len(lines)-1])
		}
		f.check(t, lines[:formatCommits*formatRecords])
		lines = lines[formatCommits*formatRecords:]
	}
	if len(lines) != 1 || lines[0] != "" {
		t.Errorf("after the last file there are %d lines more, like %.100q", len(lines), lines[0])
	}

	for _, f := range zstd {
		file, err := os.Create(filepath.Join(t.TempDir(), "file.zst"))
		if err != nil {
			t.Fatal(err)
		}
		f.write(t, func(data []byte) {
			if _, err := file.Write(data); err != nil {
				t.Fatal(err)
			}
		})
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		f.check(t, strings.SplitAfter(unzstd(t, file.Name()), "\n"))
	}
}

// unzstd prints a file with zstd-jni.
func unzstd(t testing.TB, file string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `. "$0/stack-env"; stack_cp hdfs; exec "$STACK_JAVA" -cp "$CP" testdata/Unzstd.java "$1"`, scripts, file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("read %s with zstd-jni: %v\n%s", file, err, stderr.String())
	}
	return string(out)
}

func (f *formatFile) record(n int) *recordbatch.Record {
	text := fmt.Sprintf("%s %s %s %d ", f.Serializer, f.Compression, f.SequenceValue, n)
	return &recordbatch.Record{
		TimestampMs: 1_700_000_000_000 + int64(n), Key: []byte("k"), Value: []byte(text + strings.Repeat(strconv.Itoa(n*n), 200)),
		Headers: []recordbatch.Header{{Name: []byte("größe"), Value: []byte("a \"b\"")}},
	}
}

// write makes the file, one commit after the other, and returns what its name must end with.
func (f *formatFile) write(t testing.TB, commit func(data []byte)) (extension string) {
	t.Helper()
	format, err := serializer.New(&f.HDFS)
	if err != nil {
		t.Fatal(err)
	}
	sync, n := serializer.NewSync(), 0
	for c := range formatCommits {
		var chunk serializer.Chunk
		for range formatRecords {
			chunk.Add(format, serializer.Position{Source: &spillwayv1.SourcePartition{Cluster: "c", Topic: "t", Partition: 7}, Offset: int64(n)}, f.record(n))
			n++
		}
		if _, err := format.Seal(&chunk, serializer.File{Empty: c == 0, Sync: sync}, nil); err != nil {
			t.Fatal(err)
		}
		commit(chunk.Data)
	}
	return format.Extension()
}

// check compares what a reader printed.
func (f *formatFile) check(t testing.TB, lines []string) {
	t.Helper()
	if n := formatCommits * formatRecords; len(lines) == n+1 && lines[n] == "" { // behind the last line feed
		lines = lines[:n]
	}
	if len(lines) != formatCommits*formatRecords {
		t.Errorf("%s %s: %d lines, want %d", f.Serializer, f.Compression, len(lines), formatCommits*formatRecords)
	}
	for n, line := range lines {
		r := f.record(n)
		want := string(r.Value)
		got := strings.TrimSuffix(line, "\n")
		switch f.Serializer {
		case "header_and_text":
			want = fmt.Sprintf("{timestamp=%d, topic=t, partition=7, offset=%d, key=k, größe=a \"b\"} %s", r.TimestampMs, n, r.Value)
		case "json":
			want = fmt.Sprintf(`{"cluster":"c","topic":"t","partition":7,"offset":%d,"timestamp":%d,"key":"k","value":"%s","headers":[{"name":"größe","value":"a \"b\""}]}`, n, r.TimestampMs, r.Value)
		case "sequence_file":
			if f.SequenceValue == "bytes" {
				want = hexPairs(r.Value)
			}
			want = fmt.Sprintf("%d\t%s", r.TimestampMs, want)
		case "avro_event":
			f.checkEvent(t, got, n)
			continue
		}
		if got != want {
			t.Errorf("%s %s %s: line %d is %.100q, want %.100q", f.Serializer, f.Compression, f.SequenceValue, n, got, want)
			return
		}
	}
}

func (f *formatFile) checkEvent(t testing.TB, line string, n int) {
	t.Helper()
	var event struct {
		Headers map[string]string
		Body    string
	}
	if err := json.Unmarshal([]byte(line), &event); err != nil {
		t.Fatalf("%s: %.100q: %v", f.path, line, err)
	}
	want := map[string]string{"timestamp": strconv.FormatInt(f.record(n).TimestampMs, 10), "topic": "t", "partition": "7", "offset": strconv.Itoa(n), "key": "k", "größe": "a \"b\""}
	if diff := cmp.Diff(event.Headers, want); diff != "" || event.Body != string(f.record(n).Value) {
		t.Errorf("%s: event %d has the body %.100q, and headers %s", f.path, n, event.Body, diff)
	}
}

// hexPairs is how BytesWritable prints itself.
func hexPairs(b []byte) string {
	pairs := make([]string, len(b))
	for i := range b {
		pairs[i] = hex.EncodeToString(b[i : i+1])
	}
	return strings.Join(pairs, " ")
}

// TestFormatsSurviveKills: the delivery is killed with SIGKILL while it writes files of several
// blocks, so that some are cut by the next session. An independent reader finds every record
// once.
func TestFormatsSurviveKills(t *testing.T) {
	const n = 40_000
	for _, test := range []struct {
		serializer string
		values     func(t testing.TB, file []byte, yield func(value []byte))
	}{
		{"avro_event, compression: deflate", avroBodies},
		{"parquet, compression: zstd", parquetValues},
	} {
		name, _, _ := strings.Cut(test.serializer, ",")
		t.Run(name, func(t *testing.T) {
			random := seeded(t)
			p := newPipeline(t, stack.kafka, "serializer: text", "serializer: "+test.serializer)
			createTopic(t, stack.kafka, p.topic, nil)
			p.start()
			source := newProducer(t, stack.kafka, p.topic)
			produced := make(chan error, 1)
			go func() { produced <- source.produce(n, 5_000) }()
			for range 3 {
				pause(t, time.Second+time.Duration(random.IntN(1500))*time.Millisecond)
				p.hdfs.kill()
				p.hdfs.start()
			}
			if err := <-produced; err != nil {
				t.Fatal(err)
			}
			p.awaitRest(n, 3*time.Minute, p.hdfs)
			y, files := newTally(n), hdfsFiles(t, p.hdfsDir)
			dir := t.TempDir()
			for i, f := range files {
				if !strings.HasSuffix(f, ".log") {
					t.Errorf("%s is not final", f)
				}
				files[i] = filepath.Join(dir, filepath.Base(f))
			}
			hdfsTool(t, "hdfs-dfs", "-get", p.hdfsDir+"/*/*.log", dir)
			for _, f := range files {
				file, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				test.values(t, file, y.add)
			}
			t.Logf("%d files", len(files))
			y.check(t, "HDFS", false)
			p.stop()
		})
	}
}

func avroBodies(t testing.TB, file []byte, yield func([]byte)) {
	t.Helper()
	d, err := ocf.NewDecoder(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	for d.HasNext() {
		var event struct {
			Body []byte `avro:"body"`
		}
		if err := d.Decode(&event); err != nil {
			t.Fatal(err)
		}
		yield(event.Body)
	}
	if err := d.Error(); err != nil {
		t.Fatal(err)
	}
}

func parquetValues(t testing.TB, file []byte, yield func([]byte)) {
	t.Helper()
	rows, err := parquet.Read[struct {
		Value []byte `parquet:"value,optional"`
	}](bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		yield(r.Value)
	}
}
