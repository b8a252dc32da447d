package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Contexts are the pipelines that a user's commands talk to, by name. They are in a file of the
// user's own.
type Contexts struct {
	Current  string             `yaml:"current"` // empty: none
	Contexts map[string]Context `yaml:"contexts"`

	file string
}

// Context says where the services of a pipeline are, and what to show to them.
type Context struct {
	Buffer   string         `yaml:"buffer"` // address; empty: none
	Ingest   string         `yaml:"ingest"`
	Delivery string         `yaml:"delivery"`
	Client   SecurityClient `yaml:"client"`
}

// ContextsFile returns where the user's contexts are: spillway/contexts.yaml below
// $XDG_CONFIG_HOME, which is ~/.config if it is not set.
func ContextsFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "spillway", "contexts.yaml"), nil
}

// LoadContexts reads the file at path. A file that does not exist has no contexts. One that others
// may read or write is refused, since it says who is shown the user's credentials.
func LoadContexts(path string) (*Contexts, error) {
	c := &Contexts{file: path, Contexts: map[string]Context{}}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read or changed by others; want: chmod 600 %[1]s", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	r := newReport(path)
	decoder{r}.value(readTree(data, r), "", reflect.ValueOf(c).Elem())
	k := checker{r, nil}
	for _, name := range slices.Sorted(maps.Keys(c.Contexts)) {
		k.context("contexts."+name, c.Contexts[name])
	}
	if _, there := c.Contexts[c.Current]; c.Current != "" && !there {
		k.key("current", "%q is not in contexts", c.Current)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func (k checker) context(at string, c Context) {
	for key, address := range map[string]string{"buffer": c.Buffer, "ingest": c.Ingest, "delivery": c.Delivery} {
		if address != "" {
			k.address(join(at, key), address)
		}
	}
	if (c.Client.Cert == "") != (c.Client.Key == "") {
		k.key(at+".client", "has one of cert and key; a certificate needs both")
	}
	for key, file := range map[string]string{"token_file": c.Client.TokenFile, "ca": c.Client.CA, "cert": c.Client.Cert, "key": c.Client.Key} {
		if file != "" && !filepath.IsAbs(file) {
			k.key(join(at+".client", key), "%q: want an absolute path, since commands run anywhere", file)
		}
	}
}

// Get returns a context by its name.
func (c *Contexts) Get(name string) (Context, error) {
	if x, ok := c.Contexts[name]; ok {
		return x, nil
	}
	if len(c.Contexts) == 0 {
		return Context{}, fmt.Errorf("no context %q: %s has none; spillway context set makes one", name, c.file)
	}
	return Context{}, fmt.Errorf("no context %q in %s; there is %s", name, c.file, strings.Join(slices.Sorted(maps.Keys(c.Contexts)), ", "))
}

// Set adds or replaces a context, in memory.
func (c *Contexts) Set(name string, x Context) error {
	if !validName.MatchString(name) || len(name) > maxNameLength {
		return fmt.Errorf("bad name %q: want letters and digits, with single '-' or '_' between them, at most %d characters", name, maxNameLength)
	}
	r := newReport(c.file)
	if (checker{r, nil}).context("contexts."+name, x); r.err() != nil {
		return r.err()
	}
	c.Contexts[name] = x
	return nil
}

// Save replaces the file as a whole. Only the user may read it.
func (c *Contexts) Save() error {
	dir := filepath.Dir(c.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	data, err := yaml.Marshal(valuesOf(reflect.ValueOf(c).Elem()))
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	f, err := os.CreateTemp(dir, "contexts-*.tmp") // with mode 0600
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), c.file)
	}
	if err != nil {
		return fmt.Errorf("write contexts: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// valuesOf returns what a file needs of v: keys with a value.
func valuesOf(v reflect.Value) any {
	out := map[string]any{}
	switch v.Kind() {
	case reflect.Struct:
		for f := range configFields(v.Type()) {
			if field := v.FieldByIndex(f.Index); !field.IsZero() {
				out[keyOf(f)] = valuesOf(field)
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			out[key.String()] = valuesOf(v.MapIndex(key))
		}
	default:
		return v.Interface()
	}
	return out
}
