package flume

import (
	"regexp"
	"strconv"
	"strings"
)

// node is a key of the YAML file that is written, with its comments. It has a value or children.
type node struct {
	key      string
	value    string // as it is written
	above    []string
	children []*node
	items    []string // of a list, each in YAML's flow style
}

// child returns the child of that key, which it makes when it is not there.
func (n *node) child(key string) *node {
	for _, c := range n.children {
		if c.key == key {
			return c
		}
	}
	c := &node{key: key}
	n.children = append(n.children, c)
	return c
}

// text sets a child to text, quoted where YAML needs it, with comments above it.
func (n *node) text(key, value string, above ...string) { n.plain(key, quoted(value), above...) }

// list sets a child to a list of texts.
func (n *node) list(key string, values []string, above ...string) {
	items := make([]string, len(values))
	for i, v := range values {
		items[i] = quoted(v)
	}
	n.plain(key, "["+strings.Join(items, ", ")+"]", above...)
}

// plain sets a child to a value that needs no quotes: a number, a duration, true.
func (n *node) plain(key, value string, above ...string) {
	c := n.child(key)
	c.value, c.above = value, append(c.above, above...)
}

// comment adds a line above the node.
func (n *node) comment(line string) { n.above = append(n.above, line) }

// safe are texts that YAML takes as they are, also inside of brackets.
var safe = regexp.MustCompile(`^[A-Za-z/._][A-Za-z0-9/._:-]*[A-Za-z0-9/._-]$|^[A-Za-z/]$`)

func quoted(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		return strconv.Quote(s)
	}
	if safe.MatchString(s) && !strings.Contains(s, ": ") {
		return s
	}
	return quoteYAML(s)
}

// quoteYAML quotes text for YAML's double quotes, whose escapes include those of JSON.
func quoteYAML(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7F || r == 0x85 || r == 0xA0 || r == 0x2028 || r == 0x2029 || r == 0xFEFF:
			const digits = "0123456789ABCDEF"
			b.WriteString(`\u`)
			for shift := 12; shift >= 0; shift -= 4 {
				b.WriteByte(digits[r>>shift&15])
			}
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// String returns the children of the node as a YAML file.
func (n *node) String() string {
	var b strings.Builder
	for _, c := range n.children {
		if c.value != "" || len(c.children) > 0 {
			c.write(&b, "")
		}
	}
	return b.String()
}

func (n *node) write(b *strings.Builder, indent string) {
	for _, line := range n.above {
		for wrapped := range strings.SplitSeq(wrap(line, 96-len(indent)), "\n") {
			b.WriteString(indent + "# " + wrapped + "\n")
		}
	}
	b.WriteString(indent + n.key + ":")
	switch {
	case n.value != "":
		b.WriteString(" " + n.value + "\n")
	case len(n.items) > 0:
		b.WriteString("\n")
		for _, item := range n.items {
			b.WriteString(indent + "  - " + item + "\n")
		}
	case len(n.children) == 0:
		b.WriteString(" {}\n")
	default:
		b.WriteString("\n")
		for _, c := range n.children {
			c.write(b, indent+"  ")
		}
	}
}

// wrap breaks text into lines of at most width characters, between words.
func wrap(s string, width int) string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n")
}
