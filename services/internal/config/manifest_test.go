package config

import (
	"strings"
	"testing"
	"time"
)

// TestManifest makes a delivery to files of a manifest, with the places of the delivery that it
// stands for.
func TestManifest(t *testing.T) {
	file := strings.Replace(manifested, `kerberos: {keytab: /k, principal: u@R}}`, `kerberos: {keytab: /k, principal: u@R}, round: true, time_zone: UTC, file_prefix: x, success_after: 1h}
    transforms: [{decode: flume_event}]`, 1)
	c, err := Parse("f.yaml", []byte(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, m := c.Delivery["f"], c.Delivery["m"]
	h := m.HDFS
	if h == nil || h.Path != f.HDFS.Path || h.TimeZone != "UTC" || !h.Round || h.PlacesLike != "hdfs://n:8020" {
		t.Fatalf("the places are others: %+v", h)
	}
	if h.URL != "file:///var/lib/spillway/manifest" || h.Kerberos != nil || h.Serializer != "manifest" || h.Compression != "zstd" || h.SuccessAfter != 0 || h.Roll.Idle != time.Minute {
		t.Errorf("%+v", h)
	}
	if len(m.Transforms) != 1 || m.Ordering != "none" {
		t.Errorf("%+v", m)
	}
	if f.HDFS.FilePrefix != "x" || f.HDFS.Kerberos == nil {
		t.Errorf("the delivery itself has changed: %+v", f.HDFS)
	}
	for change, want := range map[string]string{
		"serializer: json":      "serializer: json; want one that writes text",
		"append_newline: false": "do not tell records apart",
	} {
		_, err := Parse("f.yaml", []byte(strings.Replace(file, "round: true", change, 1)), nil)
		if err == nil || !strings.Contains(err.Error(), "delivery.m.manifest.like: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", change, err)
		}
	}
	if _, err := Parse("f.yaml", []byte(strings.Replace(file, "manifest: {}", "manifest: {}\n    kafka: {brokers: [o:1]}", 1)), nil); err == nil || !strings.Contains(err.Error(), "has two destinations, kafka and manifest") {
		t.Errorf("two destinations: %v", err)
	}
}
