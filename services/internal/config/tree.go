package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds a file after its anchors are expanded, so that a few lines of aliases of aliases
// cannot take all memory.
const maxNodes = 10_000

type kind uint8

const (
	null kind = iota
	scalar
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"nothing", "a single value", "a list", "a mapping"}[k]
}

// node is a value of the file without YAML's anchors and merges. No node has two parents, so the
// environment can change one value without touching another.
type node struct {
	place
	kind   kind
	text   string  // of a scalar
	items  []*node // of a list
	fields []field // of a mapping, as written; keys are unique
}

type field struct {
	place
	key   string
	value *node
}

// get returns the value of a key, or nil. A nil node has no keys.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for i := range n.fields {
		if n.fields[i].key == key {
			return n.fields[i].value
		}
	}
	return nil
}

// put adds or replaces a key.
func (n *node) put(f field) {
	for i := range n.fields {
		if n.fields[i].key == f.key {
			n.fields[i] = f
			return
		}
	}
	n.fields = append(n.fields, f)
}

// readTree reads the one document of data. On a problem it goes on with what can be understood.
func readTree(data []byte, r *report) *node {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return &node{kind: null}
	case err != nil:
		r.syntax(err, data)
		return &node{kind: null}
	}
	if err := decoder.Decode(&second); err == nil {
		r.at(place{line: second.Line}, "a second document; a file holds one")
	} else if !errors.Is(err, io.EOF) {
		r.syntax(err, data)
	}
	b := treeBuilder{report: r, open: map[*yaml.Node]bool{}}
	return b.build(document.Content[0], "")
}

var (
	yamlError     = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntax adds an error of the YAML parser, which names no line when it is the first one, when an
// anchor is unknown, and when there are bytes that no text has.
func (r *report) syntax(err error, data []byte) {
	p, message := place{line: 1}, err.Error()
	if m := yamlError.FindStringSubmatch(message); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			p.line = line
		}
		message = m[2]
	}
	if m := unknownAnchor.FindStringSubmatch(message); m != nil {
		if before, _, found := bytes.Cut(data, []byte("*"+m[1])); found {
			p.line = 1 + bytes.Count(before, []byte("\n"))
		}
	}
	if i := bytes.IndexFunc(data, notText); i >= 0 {
		p.line = 1 + bytes.Count(data[:i], []byte("\n"))
		message += "; is it a text file?"
	}
	lines := bytes.Split(data, []byte("\n"))
	switch line := lines[min(p.line, len(lines))-1]; {
	case !strings.HasPrefix(message, "found character that cannot start any token") && !strings.HasPrefix(message, "did not find expected"):
	case bytes.ContainsRune(line[:len(line)-len(bytes.TrimLeft(line, " \t"))], '\t'):
		message += "; indent with blanks, not with tabs"
	case unquoted.Match(line):
		message += "; a text that begins with one of % * & @ ` : needs quotes"
	}
	r.at(p, "not YAML: %s", message)
}

func notText(c rune) bool {
	return c == utf8.RuneError || c < ' ' && c != '\n' && c != '\r' && c != '\t'
}

// unquoted is a value, in a list or behind a key, that begins with what has a meaning in YAML.
var unquoted = regexp.MustCompile("[-:,\\[{] *[%*&@`:]")

type treeBuilder struct {
	*report
	nodes int
	open  map[*yaml.Node]bool // anchors being expanded
}

func (b *treeBuilder) build(y *yaml.Node, path string) *node {
	n := &node{place: place{line: y.Line}}
	if b.nodes++; b.nodes >= maxNodes {
		if b.nodes == maxNodes {
			b.at(n.place, "more than %d values once anchors are expanded", maxNodes)
		}
		return n
	}
	switch y.Kind {
	case yaml.AliasNode:
		if b.open[y.Alias] {
			b.at(n.place, "anchor %q contains itself", y.Value)
			return n
		}
		b.open[y.Alias] = true
		defer delete(b.open, y.Alias)
		return b.build(y.Alias, path)
	case yaml.ScalarNode:
		switch tag := y.ShortTag(); tag {
		case "!!null":
			return n
		case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge":
		default:
			b.at(n.place, "unknown tag %s %s", tag, in(path))
		}
		n.kind, n.text = scalar, y.Value
	case yaml.SequenceNode:
		n.kind = list
		for i, item := range y.Content {
			n.items = append(n.items, b.build(item, index(path, i)))
		}
	case yaml.MappingNode:
		n.kind = mapping
		b.fields(n, y, path)
	}
	return n
}

// fields reads the pairs of a mapping. Its own keys go before merged ones, and an earlier merge
// before a later one.
func (b *treeBuilder) fields(n *node, y *yaml.Node, path string) {
	var merge *yaml.Node
	lines := map[string]int{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			b.at(place{line: key.Line}, "a key %s is not plain text", in(path))
			continue
		}
		if first, twice := lines[key.Value]; twice {
			b.at(place{line: key.Line}, "duplicate key %q %s; the first is on line %d", key.Value, in(path), first)
			continue
		}
		lines[key.Value] = key.Line
		if key.ShortTag() == "!!merge" {
			merge = value
			continue
		}
		n.fields = append(n.fields, field{place{line: key.Line}, key.Value, b.build(value, join(path, key.Value))})
	}
	if merge == nil {
		return
	}
	from := b.build(merge, path)
	sources := from.items
	if from.kind != list {
		sources = []*node{from}
	}
	for _, source := range sources {
		if source.kind != mapping {
			b.at(place{line: merge.Line}, "<< %s merges %s, want a mapping", in(path), source.kind)
		}
		for _, f := range source.fields {
			if _, known := lines[f.key]; !known {
				lines[f.key] = f.line
				n.fields = append(n.fields, f)
			}
		}
	}
}
