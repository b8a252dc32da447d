package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A file may describe a part of a pipeline. These say what a service misses in it.

// ForIngest returns what is missing to run `spillway ingest`.
func (c *Config) ForIngest() error {
	if len(c.Ingest.Sources) == 0 {
		return fmt.Errorf("%s: ingest.sources is missing: nothing to read", c.file)
	}
	return nil
}

// ForBuffer returns what is missing to run `spillway buffer`.
func (c *Config) ForBuffer() error {
	if len(c.Buffer.Queues) == 0 {
		return fmt.Errorf("%s: buffer.queues is missing: nothing to keep", c.file)
	}
	if c.Buffer.DataDir == "" {
		return fmt.Errorf("%s: buffer.data_dir is missing: nowhere to keep it", c.file)
	}
	return nil
}

// ForDelivery returns the delivery of that name, for `spillway delivery NAME`.
func (c *Config) ForDelivery(name string) (*Delivery, error) {
	if d := c.Delivery[name]; d != nil {
		return d, nil
	}
	if len(c.Delivery) == 0 {
		return nil, fmt.Errorf("%s: delivery is missing: nothing to deliver", c.file)
	}
	names := slices.Sorted(maps.Keys(c.Delivery))
	if near := nearest(name, names); near != "" {
		return nil, fmt.Errorf("%s: no delivery %q; did you mean %q?", c.file, name, near)
	}
	return nil, fmt.Errorf("%s: no delivery %q; there is %s", c.file, name, strings.Join(names, ", "))
}
