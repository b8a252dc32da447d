package config

import (
	"slices"
	"strings"
	"testing"
)

func TestChanged(t *testing.T) {
	const before = `
buffers: [localhost:7400]
buffer:
  data_dir: /var/lib/spillway
  queues:
    logs:
      disk: {bytes: 1GiB}
      subscriptions:
        hdfs: {topics: ["*"]}
        gone: {topics: ["*"]}
security:
  tokens: [{name: alice, file: /run/alice, roles: [read]}]
  insecure: true
`
	after := strings.NewReplacer("1GiB", "2GiB", "[read]", "[read, tap]", "gone:", "new:", "/var/lib", "/srv").Replace(before)
	parse := func(text string) *Config {
		t.Helper()
		c, err := Parse("pipeline.yaml", []byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if keys := Changed(parse(before), parse(before)); len(keys) != 0 {
		t.Errorf("of the same file %q differ", keys)
	}
	want := []string{"buffer.data_dir", "buffer.queues.logs.disk.bytes", "buffer.queues.logs.subscriptions.gone", "buffer.queues.logs.subscriptions.new", "security.tokens"}
	if keys := Changed(parse(before), parse(after)); !slices.Equal(keys, want) {
		t.Errorf("%q differ, want %q", keys, want)
	}
}
