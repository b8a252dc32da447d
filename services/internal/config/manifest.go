package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

func (k checker) manifest(at string, m *Manifest) {
	k.url(at+".url", m.URL)
	like, err := k.c.like(m)
	if err != nil {
		k.key(at+".like", "%v", err)
		return
	}
	// These formats have more than the record's value in a line, or no lines at all.
	if f := like.HDFS.Serializer; !slices.Contains([]string{"text", "avro_event", "sequence_file"}, f) {
		k.key(at+".like", "names a delivery with serializer: %s; want one that writes text, avro_event or sequence_file", f)
	}
	if !like.HDFS.AppendNewline && like.HDFS.Serializer == "text" {
		k.key(at+".like", "names a delivery with append_newline: false, whose files do not tell records apart; want another one")
	}
}

// like returns the delivery that a manifest stands for.
func (c *Config) like(m *Manifest) (*Delivery, error) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.Delivery)) {
		if d := c.Delivery[name]; d != nil && d.HDFS != nil && d.Manifest == nil {
			names = append(names, name)
		}
	}
	switch {
	case m.Like != "" && slices.Contains(names, m.Like):
		return c.Delivery[m.Like], nil
	case m.Like != "":
		return nil, fmt.Errorf("%q is no delivery with hdfs; want one of: %s", m.Like, strings.Join(names, ", "))
	case len(names) == 1:
		return c.Delivery[names[0]], nil
	case len(names) == 0:
		return nil, fmt.Errorf("is empty, and no delivery of the file has hdfs; want the delivery that the manifest stands for")
	}
	return nil, fmt.Errorf("is empty, and several deliveries have hdfs; want one of: %s", strings.Join(names, ", "))
}

// setManifests makes of each manifest the delivery to files that writes it. The configuration has
// been checked.
func (c *Config) setManifests() error {
	files := make(map[string]*HDFS)
	for name, d := range c.Delivery {
		if d.Manifest == nil {
			continue
		}
		like, err := c.like(d.Manifest)
		if err != nil {
			return err
		}
		h := *like.HDFS
		if strings.HasPrefix(d.Manifest.URL, "file:") {
			h.ConfDir, h.Kerberos, h.DataTransferProtection, h.Replication, h.BlockSize, h.Umask = "", nil, "", 0, 0, ""
		}
		h.PlacesLike, h.URL = like.HDFS.URL, d.Manifest.URL
		h.FilePrefix, h.FileSuffix, h.InUsePrefix, h.InUseSuffix = "manifest", "", "", ".tmp"
		h.Roll = Roll{Interval: time.Hour, Size: 128 * MiB, Idle: time.Minute}
		h.Commit = Commit{Bytes: 16 * MiB, Interval: time.Second}
		h.MaxOpenFiles = 500
		h.Serializer, h.Compression = "manifest", "zstd"
		h.OnDenied, h.SuccessAfter = "wait", 0
		files[name] = &h
		if len(d.Transforms) == 0 {
			d.Transforms = like.Transforms
		}
	}
	for name, h := range files {
		c.Delivery[name].HDFS = h
	}
	return nil
}
