package config

import (
	"math"
	"strings"
	"testing"
)

func TestParseByteSize(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"0": 0, "4096": 4096, "17B": 17, "64MiB": 64 << 20, "100GiB": 100 << 30, "2TiB": 2 << 40, "1KiB": 1024,
		"500KB": 500_000, "3MB": 3_000_000, "1GB": 1e9, "1TB": 1e12, "64 MiB": 64 << 20,
		"9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
	} {
		got, err := ParseByteSize(text)
		if err != nil || got != want {
			t.Errorf("ParseByteSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "want a whole number", "MiB": "want a whole number", "-1": "want a whole number", "1.5GiB": "want a whole number",
		"64mib": "want a whole number", "64M": "want a whole number", "1 KiB ": "want a whole number", "1_000": "want a whole number", "٣": "want a whole number",
		"9223372036854775808": "too large", "8388608TiB": "too large",
	} {
		if got, err := ParseByteSize(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseByteSize(%q) = %d, %v; want an error with %q", text, got, err, want)
		}
	}
}

func TestByteSizeString(t *testing.T) {
	for size, want := range map[ByteSize]string{
		0: "0B", 1: "1B", 1000: "1KB", 1024: "1KiB", 1025: "1025B", 64 << 20: "64MiB", 3 << 40: "3TiB", 2e9: "2GB", math.MaxInt64: "9223372036854775807B",
	} {
		if got := size.String(); got != want {
			t.Errorf("ByteSize(%d).String() = %q, want %q", int64(size), got, want)
		}
	}
}

func FuzzByteSize(f *testing.F) {
	for _, text := range []string{"0", "64MiB", "100GiB", "1 KB", "9223372036854775807", "8388608TiB", "-1", "1e3", "B"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var size, again ByteSize
		if err := size.UnmarshalText([]byte(text)); err != nil {
			return
		}
		written, err := size.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalText(written); err != nil || again != size || size < 0 {
			t.Fatalf("%q is %d, written %q, read back as %d, %v", text, size, written, again, err)
		}
	})
}
