package flume

import (
	"bytes"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Property is one key and value of a file, as java.util.Properties reads them.
type Property struct {
	Key, Value string
	Line       int // where the key begins, from 1
}

// ParseProperties reads the syntax of java.util.Properties.load in full: comments, continued
// lines, the separators "=", ":" and white space, and escapes. Like Java it accepts any text. It
// returns the properties in the order of the file; of a key that is there twice Java keeps the
// last.
//
// Three things differ from Java on purpose. A file that ends with a lone backslash has no empty
// key. A malformed \u escape, at which Java throws, is reported in the second result with its
// line and stays in the text. The third result is true when the bytes are not UTF-8; they are
// then read as ISO-8859-1.
func ParseProperties(data []byte) (properties []Property, malformed []int, latin1 bool) {
	text := string(bytes.TrimPrefix(data, []byte("\uFEFF")))
	if !utf8.ValidString(text) {
		latin1 = true
		runes := make([]rune, 0, len(text))
		for _, b := range []byte(text) {
			runes = append(runes, rune(b))
		}
		text = string(runes)
	}
	lines := splitLines(text)
	for i := 0; i < len(lines); {
		first := i
		line := strings.TrimLeft(lines[i], propertySpace)
		i++
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		var logical strings.Builder
		for continues(line) {
			logical.WriteString(line[:len(line)-1])
			if i == len(lines) {
				line = ""
				break
			}
			line = strings.TrimLeft(lines[i], propertySpace)
			i++
			if logical.Len() == 0 && line != "" && (line[0] == '#' || line[0] == '!') {
				line = "" // Java takes what follows a lone backslash for the begin of a line
			}
		}
		logical.WriteString(line)
		if logical.Len() == 0 {
			continue
		}
		key, value := splitProperty(logical.String())
		k, okKey := unescape(key)
		v, okValue := unescape(value)
		if !okKey || !okValue {
			malformed = append(malformed, first+1)
		}
		properties = append(properties, Property{Key: k, Value: v, Line: first + 1})
	}
	return properties, malformed, latin1
}

// trim removes what Java's String.trim does: characters up to the space, and no other white space.
func trim(s string) string { return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' }) }

// fields splits where Java's \s+ does, at white space of ASCII.
func fields(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune(" \t\n\v\f\r", r) })
}

// propertySpace is what Java's Properties skips; other white space is part of keys and values.
const propertySpace = " \t\f"

// splitLines splits at \n, \r and \r\n.
func splitLines(text string) []string {
	text = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
	return strings.Split(text, "\n")
}

// continues reports whether the next line belongs to this one: it ends with an odd number of
// backslashes.
func continues(line string) bool {
	n := len(line) - len(strings.TrimRight(line, `\`))
	return n%2 == 1
}

// splitProperty splits a logical line at its separator, the first "=", ":" or white space that no
// backslash precedes.
func splitProperty(line string) (key, value string) {
	end := len(line)
	for i := 0; i < len(line); i++ {
		if line[i] == '\\' {
			i++
			continue
		}
		if strings.IndexByte("=: \t\f", line[i]) >= 0 {
			end = i
			break
		}
	}
	rest := strings.TrimLeft(line[end:], propertySpace)
	if rest != "" && (rest[0] == '=' || rest[0] == ':') {
		rest = strings.TrimLeft(rest[1:], propertySpace)
	}
	return line[:end], rest
}

// unescape returns the text that s stands for, and false when a \u is not followed by four digits.
func unescape(s string) (string, bool) {
	if !strings.Contains(s, `\`) {
		return s, true
	}
	var units []uint16 // of the \u escapes that follow each other: they may form pairs
	var out strings.Builder
	flush := func() {
		for _, r := range utf16.Decode(units) {
			out.WriteRune(r)
		}
		units = nil
	}
	ok := true
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			if s[i] != '\\' { // Java drops a single backslash at the end
				flush()
				out.WriteByte(s[i])
			}
			continue
		}
		i++
		if s[i] == 'u' {
			if unit, good := hex4(s[i+1:]); good {
				units = append(units, unit)
				i += 4
				continue
			}
			ok = false
			flush()
			out.WriteString(`\u`)
			continue
		}
		flush()
		switch s[i] {
		case 't':
			out.WriteByte('\t')
		case 'n':
			out.WriteByte('\n')
		case 'r':
			out.WriteByte('\r')
		case 'f':
			out.WriteByte('\f')
		default:
			out.WriteByte(s[i])
		}
	}
	flush()
	return out.String(), ok
}

// hex4 reads the four hexadecimal digits that s begins with.
func hex4(s string) (uint16, bool) {
	if len(s) < 4 {
		return 0, false
	}
	var n uint16
	for _, c := range []byte(s[:4]) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | uint16(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint16(c-'a'+10)
		case c >= 'A' && c <= 'F':
			n = n<<4 | uint16(c-'A'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
