package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// escapes are the letters that may follow a % in a template of a file delivery.
const escapes = "aAbBcdDeHIjklmMnpsStyYzZ"

// hosts are the names that may stand in %[name], in any case.
var hosts = []string{"localhost", "ip", "fqdn"}

// skeleton returns the template with "x" in the place of every escape, so that what is left is the
// text that is there for every record. An escape is %{name}, %[name], or % and one of letters.
func skeleton(template, letters string) (string, error) {
	var text strings.Builder
	for rest := template; rest != ""; {
		literal, escape, found := strings.Cut(rest, "%")
		text.WriteString(literal)
		if !found {
			break
		}
		text.WriteByte('x')
		size, err := escapeSize(escape, letters)
		if err != nil {
			return "", err
		}
		rest = escape[size:]
	}
	return text.String(), nil
}

// escapeSize is the length of the escape that s, what follows a %, begins with.
func escapeSize(s, letters string) (int, error) {
	switch {
	case s == "":
		return 0, fmt.Errorf("ends with a %%; want %%%% for a percent sign")
	case s[0] == '{' || s[0] == '[' && letters != "":
		closing := byte('}')
		if s[0] == '[' {
			closing = ']'
		}
		end := strings.IndexByte(s, closing)
		if end < 0 {
			return 0, fmt.Errorf("has a %%%c that is not closed; want a %q behind it", s[0], string(closing))
		}
		if end == 1 {
			return 0, fmt.Errorf("has an empty %%%s; want a name in it", s[:2])
		}
		if s[0] == '[' && !slices.Contains(hosts, strings.ToLower(s[1:end])) {
			return 0, fmt.Errorf("has an unknown escape %q; want %%[localhost], %%[IP] or %%[FQDN]", "%"+s[:end+1])
		}
		return end + 1, nil
	case strings.IndexByte(letters, s[0]) >= 0 || s[0] == '%' && letters != "":
		return 1, nil
	}
	unknown := []rune(s)[0]
	if letters == "" {
		return 0, fmt.Errorf("has an unknown escape %q; want %%{topic} or %%{NAME} of a header", "%"+string(unknown))
	}
	return 0, fmt.Errorf("has an unknown escape %q; want %%{NAME}, one of %%%s, or %%%% for a percent sign", "%"+string(unknown), strings.Join(strings.Split(letters, ""), " %"))
}

// path is the template of a directory: absolute, with no empty, "." or ".." segment. What the
// escapes may yield is up to the delivery.
func (k checker) path(at, template string) {
	if !k.present(at, template) {
		return
	}
	text, err := skeleton(template, escapes)
	if err != nil {
		k.key(at, "%q %v", template, err)
		return
	}
	if text == "/" {
		return
	}
	if len(template) > maxPathBytes {
		k.key(at, "has %d bytes; want at most %d", len(template), maxPathBytes)
		return
	}
	if strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(template) {
		k.key(at, "%q has a control character, or is not UTF-8; want plain text", template)
		return
	}
	first, segments, _ := strings.Cut(text, "/")
	switch parts := strings.Split(segments, "/"); {
	case first != "":
		k.key(at, "%q is not absolute; want it to begin with /", template)
	case slices.Contains(parts, ""):
		k.key(at, "%q has an empty segment; want one slash between names, and none at the end", template)
	case slices.Contains(parts, ".") || slices.Contains(parts, ".."):
		k.key(at, "%q has a segment '.' or '..'; want names", template)
	}
}

// fileTemplate is a template of a part of a file's name.
func (k checker) fileTemplate(at, template string) {
	text, err := skeleton(template, escapes)
	if err != nil {
		k.key(at, "%q %v", template, err)
		return
	}
	k.fileText(at, text)
}

// fileText is a part of a file's name.
func (k checker) fileText(at, text string) {
	switch {
	case strings.Contains(text, "/"):
		k.key(at, "%q has a '/'; want a part of a file's name, since directories belong in path", text)
	case strings.ContainsFunc(text, unicode.IsControl) || !utf8.ValidString(text):
		k.key(at, "%q has a control character, or is not UTF-8; want plain text", text)
	case len(text) > maxTextBytes:
		k.key(at, "has %d bytes; want at most %d, as a file's name", len(text), maxTextBytes)
	}
}

// noColon is for names on HDFS, which refuses them with a ':'.
func (k checker) noColon(at, template string) {
	if text, err := skeleton(template, escapes); err == nil && strings.Contains(text, ":") {
		k.key(at, "%q has a ':', which HDFS does not allow in names; want another character", template)
	}
}

var topicText = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// topicTemplate is the template of a target topic: text and %{name}.
func (k checker) topicTemplate(at, template string) {
	if !k.present(at, template) {
		return
	}
	text, err := skeleton(template, "")
	switch {
	case err != nil:
		k.key(at, "%q %v", template, err)
	case len(text) > maxKafkaName:
		k.key(at, "has %d bytes; want at most %d, as the name of a topic", len(text), maxKafkaName)
	case !topicText.MatchString(text):
		k.key(at, "%q cannot be a topic name: want letters, digits, '.', '_', '-' and %%{name}", template)
	}
}

// rounding of the time of escapes: to what divides the next larger unit, or does not, as in Flume.
func (k checker) rounding(at string, h *HDFS) {
	most := map[string]int64{"second": 60, "minute": 60, "hour": 24}
	k.oneOf(at+".round_unit", h.RoundUnit, "second", "minute", "hour")
	if limit := most[h.RoundUnit]; limit > 0 {
		between(k, at+".round_value", h.RoundValue, 1, limit)
	}
}
