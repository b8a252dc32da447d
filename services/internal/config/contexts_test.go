package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestContexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spillway", "contexts.yaml")
	load := func() *Contexts {
		t.Helper()
		c, err := LoadContexts(path)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := load() // there is none yet
	prod := Context{Buffer: "buffer:7400", Client: SecurityClient{TokenFile: "/token", CA: "/ca.crt", ServerName: "buffer"}}
	for name, x := range map[string]Context{"prod": prod, "dev": {Ingest: "localhost:7410"}} {
		if err := c.Set(name, x); err != nil {
			t.Fatal(err)
		}
	}
	c.Current = "prod"
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	if again := load(); !reflect.DeepEqual(again, c) {
		t.Errorf("%+v became %+v", c, again)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v are left, %v", entries, err)
	}
	if _, err := c.Get("pord"); err == nil || !strings.Contains(err.Error(), "there is dev, prod") {
		t.Error(err)
	}
	for want, x := range map[string]Context{
		`contexts.x.buffer: malformed address "nowhere"`: {Buffer: "nowhere"},
		"contexts.x.client: has one of cert and key":     {Client: SecurityClient{Cert: "/c"}},
		`contexts.x.client.ca: "ca.crt": want an absol`:  {Client: SecurityClient{CA: "ca.crt"}},
	} {
		if err := c.Set("x", x); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := c.Set("a/b", Context{}); err == nil || !strings.Contains(err.Error(), "bad name") {
		t.Error(err)
	}
}

// TestContextsOfOthers: a file that others may change could send a token anywhere.
func TestContextsOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "contexts.yaml")
	for _, test := range []struct {
		content string
		mode    os.FileMode
		want    string
	}{
		{"contexts: {p: {buffer: 'b:1'}}", 0o644, "want: chmod 600"},
		{"contexts: {p: {buffer: 'b:1'}}", 0o620, "want: chmod 600"},
		{"contexts: {p: {bufer: 'b:1'}}", 0o600, `contexts.yaml:1: unknown key "bufer" in contexts.p; did you mean "buffer"?`},
		{"current: p\ncontexts: {}", 0o600, `contexts.yaml:1: current: "p" is not in contexts`},
		{"contexts: {p: {buffer: 'b'}}", 0o400, "malformed address"},
	} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(test.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadContexts(path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s with mode %o: %v, want %s", test.content, test.mode, err, test.want)
		}
	}
}
