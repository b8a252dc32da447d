package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A file may describe a part of a pipeline. These say what a service misses in it.

// Warnings are about values that are allowed and most likely not what is meant: options without
// effect, and settings that do not go together well. They are sorted by line. A message begins
// with the path of its key.
func (c *Config) Warnings() Problems { return c.warnings }

// ForIngest returns what is missing to run `spillway ingest`.
func (c *Config) ForIngest() error {
	if len(c.Ingest.Sources) == 0 {
		return fmt.Errorf("%s: ingest.sources is missing; want at least one source to read", c.file)
	}
	return nil
}

// ForBuffer returns what is missing to run `spillway buffer`.
func (c *Config) ForBuffer() error {
	if len(c.Buffer.Queues) == 0 {
		return fmt.Errorf("%s: buffer.queues is missing; want at least one queue to keep", c.file)
	}
	if c.Buffer.DataDir == "" && c.Buffer.needsDataDir() {
		return fmt.Errorf("%s: buffer.data_dir is missing; want a directory such as /var/lib/spillway", c.file)
	}
	return nil
}

// needsDataDir says whether a queue is on this machine's disk.
func (b *Buffer) needsDataDir() bool {
	for _, q := range b.Queues {
		if q.Store.Kafka == nil {
			return true
		}
	}
	return false
}

// ForOneProcess returns what is missing to run `spillway run`: all parts, each with ports of its
// own.
func (c *Config) ForOneProcess() error {
	if err := c.ForBuffer(); err != nil {
		return err
	}
	if err := c.ForIngest(); err != nil {
		return err
	}
	if len(c.Delivery) == 0 {
		return fmt.Errorf("%s: delivery is missing; want at least one delivery", c.file)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Buffer.Queues)) {
		if n := c.Buffer.Queues[name].Shards; n > 1 {
			return fmt.Errorf("%s: buffer.queues.%s.shards is %d, and one process has one buffer; want 1, or each service in a process of its own", c.file, name, n)
		}
	}
	var problems Problems
	c.eachSamePort(func(a, b servicePort) {
		problems = append(problems, Problem{File: c.file, Message: fmt.Sprintf(
			"%s: %q is the same port as %s, %q, and both are to run in one process; want another port", a.key, a.address, b.key, b.address)})
	})
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// ForDelivery returns the delivery of that name, for `spillway delivery NAME`.
func (c *Config) ForDelivery(name string) (*Delivery, error) {
	if d := c.Delivery[name]; d != nil {
		return d, nil
	}
	if len(c.Delivery) == 0 {
		return nil, fmt.Errorf("%s: delivery is missing; want at least one delivery", c.file)
	}
	names := slices.Sorted(maps.Keys(c.Delivery))
	if near := Nearest(name, names); near != "" {
		return nil, fmt.Errorf("%s: no delivery %q; did you mean %q?", c.file, name, near)
	}
	return nil, fmt.Errorf("%s: no delivery %q; there is %s", c.file, name, strings.Join(names, ", "))
}
