package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

// Transform changes or leaves out records on their way to a destination. Exactly one part is set.
type Transform struct {
	SetHeader     *SetHeader     `yaml:"set_header"`
	RemoveHeader  *RemoveHeader  `yaml:"remove_header"`
	ExtractHeader *ExtractHeader `yaml:"extract_header"`
	ReplaceValue  *ReplaceValue  `yaml:"replace_value"`
	SetTime       *SetTime       `yaml:"set_time"`
	Keep          *Match         `yaml:"keep"`
	Drop          *Match         `yaml:"drop"`
	// Decode takes the value apart; flume_event is Flume's Avro event of headers and body.
	Decode string `yaml:"decode"`
	// Encode is the reverse of Decode.
	Encode string `yaml:"encode"`
	// OnError says what becomes of a record that a transform cannot work on: dead_letter, keep
	// (as it is at this point) or drop.
	OnError string `yaml:"on_error"`
}

// SetHeader gives every record a header.
type SetHeader struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
	// Keep leaves a header that is there as it is.
	Keep bool `yaml:"keep"`
}

// RemoveHeader removes the headers of a name, or those whose names match a regular expression.
type RemoveHeader struct {
	Name     string `yaml:"name"`
	Matching string `yaml:"matching"`
}

// ExtractHeader sets a header to a field of the record, or to what a regular expression finds in
// it.
type ExtractHeader struct {
	Name string `yaml:"name"`
	// From is value, key, header:NAME or json:PATH, a path into a value of JSON.
	From string `yaml:"from"`
	// Regex is searched in the field; Group of it counts, or all of it without groups.
	Regex string `yaml:"regex"`
	Group int    `yaml:"group"`
}

// ReplaceValue replaces what a regular expression finds in the value.
type ReplaceValue struct {
	Regex string `yaml:"regex"`
	// With may have $1 or ${name} for groups.
	With string `yaml:"with"`
}

// SetTime sets the timestamp of the record.
type SetTime struct {
	From string `yaml:"from"`
	// Unit is milliseconds, seconds, microseconds or nanoseconds since 1970, or rfc3339.
	Unit string `yaml:"unit"`
}

// Match holds for records with a field that equals a text or in which a regular expression finds
// something. A field that is not there is empty.
type Match struct {
	From   string `yaml:"from"`
	Regex  string `yaml:"regex"`
	Equals string `yaml:"equals"`
}

func (t *Transform) setDefaults()     { t.OnError = "dead_letter" }
func (e *ExtractHeader) setDefaults() { e.From, e.Group = "value", 1 }
func (m *Match) setDefaults()         { m.From = "value" }
func (s *SetTime) setDefaults()       { s.Unit = "milliseconds" }

// transforms checks the transforms of a delivery.
func (k checker) transforms(at string, all []Transform) {
	for i := range all {
		k.transform(index(at, i), &all[i])
	}
}

func (k checker) transform(at string, t *Transform) {
	var set []string
	v := reflect.ValueOf(t).Elem()
	for f := range configFields(v.Type()) {
		if name := keyOf(f); name != "on_error" && !v.FieldByIndex(f.Index).IsZero() {
			set = append(set, name)
		}
	}
	if len(set) != 1 {
		k.key(at, "has %d transforms%s; want exactly one of set_header, remove_header, extract_header, replace_value, set_time, keep, drop, decode, encode",
			len(set), named(set))
		return
	}
	k.oneOf(at+".on_error", t.OnError, "dead_letter", "keep", "drop")
	at = join(at, set[0])
	switch {
	case t.SetHeader != nil:
		k.present(at+".name", t.SetHeader.Name)
	case t.RemoveHeader != nil:
		if (t.RemoveHeader.Name == "") == (t.RemoveHeader.Matching == "") {
			k.key(at, "want either name or matching")
		}
		k.regex(at+".matching", t.RemoveHeader.Matching)
	case t.ExtractHeader != nil:
		k.present(at+".name", t.ExtractHeader.Name)
		k.from(at+".from", t.ExtractHeader.From)
		k.regex(at+".regex", t.ExtractHeader.Regex)
		atLeast(k, at+".group", t.ExtractHeader.Group, 0)
	case t.ReplaceValue != nil:
		if k.present(at+".regex", t.ReplaceValue.Regex) {
			k.regex(at+".regex", t.ReplaceValue.Regex)
		}
	case t.SetTime != nil:
		if k.present(at+".from", t.SetTime.From) {
			k.from(at+".from", t.SetTime.From)
		}
		k.oneOf(at+".unit", t.SetTime.Unit, "milliseconds", "seconds", "microseconds", "nanoseconds", "rfc3339")
	case t.Keep != nil:
		k.match(at, t.Keep)
	case t.Drop != nil:
		k.match(at, t.Drop)
	default:
		k.oneOf(at, t.Decode+t.Encode, "flume_event")
	}
}

func named(set []string) string {
	if len(set) == 0 {
		return ""
	}
	return " (" + strings.Join(set, ", ") + ")"
}

func (k checker) match(at string, m *Match) {
	k.from(at+".from", m.From)
	k.regex(at+".regex", m.Regex)
	if m.Regex != "" && m.Equals != "" {
		k.key(at, "want either regex or equals")
	}
}

func (k checker) regex(at, expression string) {
	if _, err := regexp.Compile(expression); err != nil {
		k.key(at, "bad regular expression %q: %v (the syntax is RE2, without look-around and back references)", expression, err)
	}
}

func (k checker) from(at, from string) {
	if _, _, err := SplitField(from); err != nil {
		k.key(at, "%v", err)
	}
}

// SplitField splits the name of a field of a record, as from has it, into its kind (value, key,
// header or json) and the name or path behind the colon.
func SplitField(from string) (kind, name string, err error) {
	kind, name, _ = strings.Cut(from, ":")
	switch {
	case from == "value" || from == "key":
		return from, "", nil
	case (kind == "header" || kind == "json") && name != "":
		return kind, name, nil
	}
	return "", "", fmt.Errorf("bad field %q: want value, key, header:NAME or json:PATH", from)
}
