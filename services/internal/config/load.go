package config

import (
	"fmt"
	"os"
	"reflect"
)

// Load reads the file at path and the variables of this process's environment.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, os.Environ())
}

// Parse reads a configuration from data, which is called name in messages, with the overrides of
// environ ("NAME=value", as os.Environ returns). Its error is Problems: all there are, not only
// the first.
func Parse(name string, data []byte, environ []string) (*Config, error) {
	r := newReport(name)
	root := readTree(data, r)
	overlay(root, environ, r)
	c := &Config{file: name}
	c.setDefaults()
	decoder{r}.value(root, "", reflect.ValueOf(c).Elem())
	for _, d := range c.Delivery {
		d.setOrdering()
	}
	c.Buffer.setTopics()
	c.setAddresses()
	checker{r, c}.check()
	if err := r.err(); err != nil {
		return nil, err
	}
	if err := c.setManifests(); err != nil {
		return nil, err
	}
	c.warnings = r.warnings.sorted()
	return c, nil
}
