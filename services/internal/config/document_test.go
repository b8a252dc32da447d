package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDocumentIsComplete compares docs/configuration.md with the types: the same keys in the same
// order, each with its type and its default.
func TestDocumentIsComplete(t *testing.T) {
	got := documentedKeys(t)
	want := keysOf("", reflect.ValueOf(new(Config)))
	for i, w := range want {
		j := slices.IndexFunc(got, func(k documentedKey) bool { return k.path == w.path })
		if j < 0 {
			t.Errorf("docs/configuration.md lacks %s", w.path)
			continue
		}
		g := got[j]
		if !slices.Contains(strings.Split(w.kinds, "|"), g.kinds) {
			t.Errorf("docs/configuration.md: %s is a %s, want %s", g.path, g.kinds, w.kinds)
		}
		if w.value != "" && g.value != w.value {
			t.Errorf("docs/configuration.md: %s has the default %q, want %q", g.path, g.value, w.value)
		}
		if g.meaning == "" {
			t.Errorf("docs/configuration.md: %s has no meaning", g.path)
		}
		if j != i && len(got) == len(want) {
			t.Errorf("docs/configuration.md: %s is key %d, want %d, as in the type", g.path, j+1, i+1)
		}
	}
	for _, g := range got {
		if !slices.ContainsFunc(want, func(k documentedKey) bool { return k.path == g.path }) {
			t.Errorf("docs/configuration.md has %s, which is no key", g.path)
		}
	}
}

// TestReadmeExample reads the YAML in README.md.
func TestReadmeExample(t *testing.T) {
	_, example, found := strings.Cut(string(readFile(t, "../../../README.md")), "```yaml\n")
	if !found {
		t.Fatal("README.md has no YAML")
	}
	example, _, _ = strings.Cut(example, "```")
	if _, err := Parse("README.md", []byte(example), nil); err != nil {
		t.Error(err)
	}
}

// TestExampleIsComplete: docs/examples/pipeline.yaml is accepted without a warning, and has every
// key in its section, be it in a comment.
func TestExampleIsComplete(t *testing.T) {
	const file = "../../../docs/examples/pipeline.yaml"
	data := readFile(t, file)
	c, err := Parse(file, data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if warnings := c.Warnings(); len(warnings) > 0 {
		t.Errorf("it is warned of: %v", warnings)
	}
	sections := make(map[string]string) // by their first key
	section := ""
	for line := range strings.Lines(string(data)) {
		if m := topKey.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		sections[section] += line
	}
	for _, k := range keysOf("", reflect.ValueOf(new(Config))) {
		top, _, _ := strings.Cut(k.path, ".")
		last := k.path[strings.LastIndex(k.path, ".")+1:]
		if !regexp.MustCompile(`(?m)(^|[ {])` + last + ":").MatchString(sections[top]) {
			t.Errorf("the example lacks %s", k.path)
		}
	}
}

var topKey = regexp.MustCompile(`^([a-z]+):`)

type documentedKey struct{ path, kinds, value, meaning string }

var (
	heading = regexp.MustCompile("^### (?:The file|`(.*)`)$")
	row     = regexp.MustCompile(`^\| ` + "`([a-z0-9_.]+)`" + ` \| (.*?) \| (.*?) \| (.*) \|$`)
	quoted  = regexp.MustCompile("^`[^`]*`(, `[^`]*`)*$")
)

// documentedKeys reads the tables below headings that are keys.
func documentedKeys(t *testing.T) []documentedKey {
	t.Helper()
	data := readFile(t, "../../../docs/configuration.md")
	var keys []documentedKey
	around, inKeys := "", false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			m := heading.FindStringSubmatch(line)
			if inKeys = m != nil; inKeys {
				around = m[1]
			}
			continue
		}
		m := row.FindStringSubmatch(line)
		if !inKeys || m == nil {
			continue
		}
		kinds := m[2]
		switch {
		case quoted.MatchString(kinds) || kinds == "template" || kinds == "URL" || kinds == "address":
			kinds = "text"
		case strings.HasPrefix(kinds, "list of "):
			kinds = "list"
		}
		keys = append(keys, documentedKey{join(around, m[1]), kinds, strings.Trim(m[3], "`"), m[4]})
	}
	return keys
}

// keysOf lists the keys of a part that has its defaults. The value is empty where a key has none, or one
// that depends on others.
func keysOf(path string, part reflect.Value) []documentedKey {
	if p, ok := part.Interface().(interface{ setDefaults() }); ok {
		p.setDefaults()
	}
	var keys []documentedKey
	for f := range configFields(part.Type().Elem()) {
		at, v := join(path, keyOf(f)), part.Elem().FieldByIndex(f.Index)
		switch {
		case v.Kind() == reflect.Struct:
			keys = append(keys, keysOf(at, v.Addr())...)
		case v.Kind() == reflect.Map:
			keys = append(keys, keysOf(at+".NAME", reflect.New(v.Type().Elem().Elem()))...)
		case v.Kind() == reflect.Pointer:
			keys = append(keys, keysOf(at, reflect.New(v.Type().Elem()))...)
		default:
			keys = append(keys, documentedKey{path: at, kinds: kindsOf(v), value: defaultOf(v)})
		}
	}
	return keys
}

func kindsOf(v reflect.Value) string {
	switch {
	case v.Type() == byteSizeType:
		return "byte size"
	case v.Type() == durationType:
		return "duration"
	case v.Kind() == reflect.Bool:
		return "boolean"
	case v.Kind() == reflect.Slice:
		return "list"
	case v.Kind() == reflect.String:
		return "text"
	}
	return "number"
}

func defaultOf(v reflect.Value) string {
	switch d := v.Interface().(type) {
	case time.Duration:
		return text(d)
	case []string:
		return strings.Join(d, ", ")
	case []Transform, []StaticToken, []CertificateIdentity:
		return "" // none
	case string:
		return strings.TrimPrefix(d, unset) // depends on security
	default:
		return fmt.Sprint(d)
	}
}
