package config

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// decoder fills a Config from a tree by the yaml tags of its types, and notes where each key was
// written.
type decoder struct{ *report }

// value decodes n, the value of the key at path, into v, which holds the default.
func (d decoder) value(n *node, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		part := reflect.New(v.Type().Elem())
		if p, ok := part.Interface().(interface{ setDefaults() }); ok {
			p.setDefaults()
		}
		v.Set(part)
		d.value(n, path, part.Elem())
	case reflect.Struct:
		d.fields(n, path, v)
	case reflect.Map:
		d.names(n, path, v)
	case reflect.Slice:
		d.list(n, path, v)
	default:
		if n.kind == null {
			d.key(path, "has no value; want %s", wanted(v.Type()))
			return
		}
		if n.kind != scalar {
			d.key(path, "want %s, not %s", wanted(v.Type()), n.kind)
			return
		}
		if err := decodeScalar(n.text, v); err != nil {
			d.key(path, "%v", err)
		}
	}
}

// fields decodes a mapping with known keys. Nothing at all is taken as an empty mapping.
func (d decoder) fields(n *node, path string, v reflect.Value) {
	if n.kind != mapping && n.kind != null {
		d.key(path, "want a mapping, not %s", n.kind)
		return
	}
	for _, f := range n.fields {
		known, ok := fieldByKey(v.Type(), func(key string) bool { return key == f.key })
		if !ok {
			d.unknownKey(n, f, path, v.Type())
			continue
		}
		at := join(path, f.key)
		d.places[at] = f.place
		d.value(f.value, at, v.FieldByIndex(known.Index))
	}
}

func (d decoder) unknownKey(n *node, f field, path string, t reflect.Type) {
	if p, ok := reflect.New(t).Interface().(interface{ unsupported() map[string]string }); ok && p.unsupported()[f.key] != "" {
		d.at(f.place, "key %q %s is not supported: %s", f.key, in(path), p.unsupported()[f.key])
		return
	}
	var keys []string
	for known := range configFields(t) {
		keys = append(keys, keyOf(known))
	}
	meant := Nearest(f.key, keys)
	if meant == "" {
		d.at(f.place, "unknown key %q %s; known keys: %s", f.key, in(path), strings.Join(keys, ", "))
		return
	}
	d.at(f.place, "unknown key %q %s; did you mean %q?", f.key, in(path), meant)
	if n.get(meant) == nil {
		d.blamed[join(path, meant)] = true // that it is missing follows
	}
}

// validName is what sources, queues, subscriptions and deliveries may be called: fit for paths of
// files, for variables, and for "queue/subscription".
var validName = regexp.MustCompile(`^[A-Za-z0-9]+([-_][A-Za-z0-9]+)*$`)

const maxNameLength = 63

// names decodes a mapping whose keys are the user's names.
func (d decoder) names(n *node, path string, v reflect.Value) {
	if n.kind != mapping && n.kind != null {
		d.key(path, "want a mapping of names, not %s", n.kind)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for _, f := range n.fields {
		if !validName.MatchString(f.key) || len(f.key) > maxNameLength {
			d.at(f.place, "bad name %q %s: want letters and digits, with single '-' or '_' between them, at most %d characters", f.key, in(path), maxNameLength)
			continue
		}
		at := join(path, f.key)
		d.places[at] = f.place
		part := reflect.New(v.Type().Elem()).Elem()
		d.value(f.value, at, part)
		v.SetMapIndex(reflect.ValueOf(f.key), part)
	}
}

func (d decoder) list(n *node, path string, v reflect.Value) {
	if n.kind == null {
		d.key(path, "has no value; want a list such as [a, b]")
		return
	}
	if n.kind != list {
		d.key(path, "want a list such as [a, b], not %s", n.kind)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		at := index(path, i)
		d.places[at] = item.place
		if p, ok := v.Index(i).Addr().Interface().(interface{ setDefaults() }); ok {
			p.setDefaults()
		}
		d.value(item, at, v.Index(i))
	}
}

var (
	byteSizeType = reflect.TypeFor[ByteSize]()
	durationType = reflect.TypeFor[time.Duration]()
)

func wanted(t reflect.Type) string {
	switch {
	case t == byteSizeType:
		return "a byte size such as 64MiB"
	case t == durationType:
		return "a duration such as 500ms, 30s or 1h"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.String:
		return "text"
	default:
		return "a whole number"
	}
}

func decodeScalar(text string, v reflect.Value) error {
	switch {
	case v.Type() == byteSizeType:
		size, err := ParseByteSize(text)
		if err != nil {
			return err
		}
		v.SetInt(int64(size))
	case v.Type() == durationType:
		duration, err := time.ParseDuration(text)
		if err != nil {
			if durationForm.MatchString(text) {
				return fmt.Errorf("bad duration %q: too long; want less than 292 years", text)
			}
			return fmt.Errorf("bad duration %q: want a number and a unit, such as 500ms, 30s or 1h", text)
		}
		v.SetInt(int64(duration))
	case v.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("want true or false, not %q", text)
		}
		v.SetBool(text == "true")
	case v.Kind() == reflect.String:
		v.SetString(text)
	default:
		number, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("%s is too large; want a whole number of at most %d", text, int64(math.MaxInt64))
		}
		if err != nil {
			return fmt.Errorf("want a whole number, not %q", text)
		}
		v.SetInt(number)
	}
	return nil
}

// durationForm is what time.ParseDuration reads unless the duration is too long.
var durationForm = regexp.MustCompile(`^[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$`)

// text is a number as it is written in the file.
func text[N number](n N) string {
	switch n := any(n).(type) {
	case ByteSize:
		return n.String()
	case time.Duration:
		return wholeUnits.ReplaceAllString(n.String(), "$1")
	}
	return strconv.FormatInt(int64(n), 10)
}

// wholeUnits are the zeros that 1h0m0s ends with.
var wholeUnits = regexp.MustCompile(`([hm])(0m)?0s$`)

// configFields are the fields of a part that are keys.
func configFields(t reflect.Type) iter.Seq[reflect.StructField] {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); keyOf(f) != "" && !yield(f) {
				return
			}
		}
	}
}

func keyOf(f reflect.StructField) string { return f.Tag.Get("yaml") }

func fieldByKey(t reflect.Type, is func(key string) bool) (reflect.StructField, bool) {
	for f := range configFields(t) {
		if is(keyOf(f)) {
			return f, true
		}
	}
	return reflect.StructField{}, false
}
