package flume

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// TestBucketPath compares with what Flume's own class BucketPath yields; the file sink's tests say
// how the vectors were made.
func TestBucketPath(t *testing.T) {
	f, err := os.Open("../delivery/filesink/testdata/bucketpath/vectors.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	n, failed := 0, 0
	for d := json.NewDecoder(lines); ; n++ {
		var v struct {
			Template, Zone, Unit, Yields string
			Value                        int
			Now                          int64
			Headers                      map[string]string
		}
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		zone, err := time.LoadLocation(v.Zone)
		if err != nil {
			t.Fatal(err)
		}
		b := &bucketPath{zone: zone, round: v.Unit != "", unit: v.Unit, value: v.Value, local: v.Now != 0, now: time.UnixMilli(v.Now), host: func(what string) (string, error) { return what, nil }}
		got, err := b.escape(v.Template, v.Headers)
		if err != nil || got != v.Yields {
			t.Errorf("%+v: %q, %v", v, got, err)
			if failed++; failed == 20 {
				t.Fatal("and more")
			}
		}
	}
	if n < 4000 {
		t.Errorf("there are %d vectors", n)
	}
	if _, err := (&bucketPath{zone: time.UTC}).escape("/%Y", nil); !errors.Is(err, errNoTime) {
		t.Errorf("without a timestamp: %v", err)
	}
}
