package filesink

import (
	"errors"
	"path"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func testHost(what string) (string, error) {
	if what == "localhost" {
		return "node-1", nil
	}
	return "", errors.New("unknown")
}

func newTestLayout(t testing.TB, url, dir, prefix string) *layout {
	t.Helper()
	l, err := newLayout(&config.HDFS{URL: url, Path: dir, FilePrefix: prefix, FileSuffix: ".log", InUseSuffix: ".tmp", TimeZone: "Europe/Berlin"}, "", testHost)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestPaths is what docs/configuration.md says of paths.
func TestPaths(t *testing.T) {
	at := time.Date(2026, 3, 5, 6, 8, 9, 10e6, time.UTC).UnixMilli() // 07:08:09 in Berlin
	long := strings.Repeat("ä", 150)
	headers := []recordbatch.Header{
		{Name: []byte("tenant"), Value: []byte("acme")}, {Name: []byte("tenant"), Value: []byte("second")},
		{Name: []byte("evil"), Value: []byte("../../etc")}, {Name: []byte("dots"), Value: []byte("..")}, {Name: []byte("dot"), Value: []byte(".")},
		{Name: []byte("null")}, {Name: []byte("bytes"), Value: []byte("a\x00\xff%:b")}, {Name: []byte("long"), Value: []byte(long)},
	}
	for _, test := range []struct{ dir, prefix, wantDir, wantPrefix string }{
		{"/", "", "", ""},
		{"/logs/%{topic}/%{partition}", "%{tenant}", "/logs/orders/3", "acme"},
		{"/%Y/%y/%m/%n/%d/%e/%j", "%H%k%I%l%M%S%p", "/2026/26/03/3/05/5/064", "0770770809AM"},
		{"/%a/%A/%b/%B/%D", "%D", "/Thu/Thursday/Mar/March/03/05/26", "03%2F05%2F26"},
		{"/%s/%t/%z/%Z", "100%%", "/1772690889/1772690889010/+0100/CET", "100%"},
		{"/%{key}/%{offset}", "%{timestamp}", "/k%2F1/17", "1772690889010"},
		{"/%c", "%[localhost]", "/Thu Mar 5 07%3A08%3A09 2026", "node-1"},
		// No way out, whatever is in a record.
		{"/%{evil}", "%{evil}", "/..%2F..%2Fetc", "..%2F..%2Fetc"},
		{"/%{dots}/%{dot}/x", "%{dots}", "/%2E%2E/%2E/x", ".."},
		{"/%{dot}%{dot}", "", "/%2E%2E", ""},
		{"/%{bytes}", "", "/a%00%FF%25%3Ab", ""},
		// Nothing there.
		{"/logs/%{none}/%Y", "%{none}", "/logs/empty/2026", ""},
		{"/logs/t-%{none}", "", "/logs/t-", ""},
		{"/logs/%{null}", "", "/logs/empty", ""},
		{"/%{none}", "", "/empty", ""},
		{"/%{none}%{none}", "", "/empty", ""},
		// Too long.
		{"/%{long}", "", "/" + strings.Repeat("ä", 91) + "~ad70a676b430b035", ""},
	} {
		l := newTestLayout(t, "hdfs://namenode:8020", test.dir, test.prefix)
		dir, prefix := l.render(l.item(&spillwayv1.SourcePartition{Topic: "orders", Partition: 3}, 17, &recordbatch.Record{TimestampMs: at, Key: []byte("k/1"), Headers: headers}))
		if dir != test.wantDir || prefix != test.wantPrefix {
			t.Errorf("%q and %q yield %q and %q, want %q and %q", test.dir, test.prefix, dir, prefix, test.wantDir, test.wantPrefix)
		}
	}

	l := newTestLayout(t, "file:///data", "/%{bytes}", "")
	if dir, _ := l.render(l.item(&spillwayv1.SourcePartition{}, 0, &recordbatch.Record{Headers: headers})); dir != "/a%00%FF%25:b" {
		t.Errorf("a colon on a local directory yields %q", dir)
	}
	l = newTestLayout(t, "file:///data", "/%Y", "")
	if dir, _ := l.render(l.item(&spillwayv1.SourcePartition{}, 0, &recordbatch.Record{TimestampMs: -1})); dir != "/1970" {
		t.Errorf("a timestamp before 1970 yields %q", dir)
	}
}

// FuzzPaths looks for a record whose file would not be below the template's own text, or whose
// name no file system takes.
func FuzzPaths(f *testing.F) {
	f.Add("orders", []byte("../../etc"), int64(1772690889010))
	f.Add(".", []byte(".."), int64(-5))
	f.Add("", []byte{0xff, '/', 0, '%'}, int64(1)<<62)
	layouts := []*layout{
		newTestLayout(f, "hdfs://namenode:8020", "/logs/%{h}/%{topic}/%c/%D", "%{h}%{topic}%c"),
		newTestLayout(f, "hdfs://namenode:8020", "/logs/%{h}%{h}", "%D"),
		newTestLayout(f, "hdfs://namenode:8020", "/logs/.%{h}", ".%{h}"),
	}
	f.Fuzz(func(t *testing.T, topic string, header []byte, ms int64) {
		source := &spillwayv1.SourcePartition{Topic: topic}
		r := &recordbatch.Record{TimestampMs: ms, Headers: []recordbatch.Header{{Name: []byte("h"), Value: header}}}
		for _, l := range layouts {
			dir, prefix := l.render(l.item(source, 0, r))
			file := dir + "/" + prefix + ".1-1.log"
			if !strings.HasPrefix(dir, "/logs/") || path.Clean(file) != file || strings.Contains(prefix, "/") {
				t.Errorf("dir %q, prefix %q", dir, prefix)
			}
			if !utf8.ValidString(file) || strings.ContainsAny(file, ":\x00") {
				t.Errorf("no name for HDFS: %q", file)
			}
			for segment := range strings.SplitSeq(file, "/") {
				if len(segment) > maxName {
					t.Errorf("a segment of %d bytes", len(segment))
				}
			}
			if again, _ := l.render(l.item(source, 0, r)); again != dir {
				t.Errorf("rendering it again yields %q, and %q before", again, dir)
			}
		}
	})
}
