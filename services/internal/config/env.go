package config

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// A variable SPILLWAY_<PATH> overrides one value of the file. PATH is the path of its key in
// upper case, with "__" between keys and "_" for a dash: SPILLWAY_BUFFER__DATA_DIR is
// buffer.data_dir, SPILLWAY_INGEST__SOURCES__S__TOPICS="a,b" is ingest.sources.s.topics. A name
// that the file has not got is added in lower case.
const (
	variablePrefix    = "SPILLWAY_"
	variableSeparator = "__"
)

// notConfig are the variables with the prefix that are not keys: flags of the command line, and
// what Kubernetes sets in every container for services whose names begin with "spillway".
var notConfig = regexp.MustCompile(`^SPILLWAY_(CONFIG$|CONTEXT$|LOG_|(.*_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$)`)

// overlay puts the variables of environ ("NAME=value") into the tree.
func overlay(root *node, environ []string, r *report) {
	for _, entry := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, variablePrefix)
		if !ours || notConfig.MatchString(name) {
			continue
		}
		here := place{variable: name}
		keys, shape, problem := resolve(root, strings.Split(rest, variableSeparator))
		if problem != "" {
			if near := Nearest(name, variables(reflect.TypeFor[Config](), root, strings.TrimSuffix(variablePrefix, "_"), "_")); near != "" && near != name {
				problem += "; did you mean " + near + "?"
			}
			r.at(here, "%s", problem)
			continue
		}
		leaf := &node{place: here, kind: scalar, text: value}
		if shape == list {
			leaf.kind = list
			for item := range strings.SplitSeq(value, ",") {
				if item = strings.TrimSpace(item); item != "" {
					leaf.items = append(leaf.items, &node{place: here, kind: scalar, text: item})
				}
			}
		}
		set(root, keys, leaf)
	}
}

// resolve turns the segments of a variable into keys, and says whether they lead to a scalar or a
// list.
func resolve(root *node, segments []string) (keys []string, leaf kind, problem string) {
	t, n := reflect.TypeFor[Config](), root
	for _, segment := range segments {
		key := ""
		switch {
		case t.Kind() == reflect.Struct:
			f, known := fieldByKey(t, func(key string) bool { return strings.ToUpper(key) == segment })
			if known {
				key, t = keyOf(f), f.Type
			}
		case t.Kind() == reflect.Map:
			var matches []string
			for _, f := range n.written() {
				if variableSegment(f.key) == segment {
					matches = append(matches, f.key)
				}
			}
			if len(matches) > 1 {
				return nil, null, "could mean " + alternatives(matches) + " " + in(strings.Join(keys, "."))
			}
			key, t = strings.ToLower(segment), t.Elem()
			if len(matches) == 1 {
				key = matches[0]
			}
		}
		if key == "" {
			return nil, null, "unknown variable"
		}
		keys = append(keys, key)
		n = n.get(key)
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return nil, null, strings.Join(keys, ".") + " has keys of its own; set one of them"
	case reflect.Slice:
		return keys, list, ""
	default:
		return keys, scalar, ""
	}
}

// set puts leaf at keys, making mappings on the way. What is written in the way and is no mapping
// stays, and is reported when it is decoded.
func set(n *node, keys []string, leaf *node) {
	if n.kind == null {
		n.kind = mapping
	}
	if n.kind != mapping {
		return
	}
	if len(keys) == 1 {
		n.put(field{leaf.place, keys[0], leaf})
		return
	}
	child := n.get(keys[0])
	if child == nil {
		child = &node{place: leaf.place}
		n.put(field{leaf.place, keys[0], child})
	}
	set(child, keys[1:], leaf)
}

// variables lists the variables of everything below prefix, with the names that the file has.
func variables(t reflect.Type, n *node, prefix, separator string) []string {
	var all []string
	switch t.Kind() {
	case reflect.Pointer:
		return variables(t.Elem(), n, prefix, separator)
	case reflect.Struct:
		for f := range configFields(t) {
			all = append(all, variables(f.Type, n.get(keyOf(f)), prefix+separator+strings.ToUpper(keyOf(f)), variableSeparator)...)
		}
	case reflect.Map:
		for _, f := range n.written() {
			all = append(all, variables(t.Elem(), f.value, prefix+separator+variableSegment(f.key), variableSeparator)...)
		}
	default:
		return []string{prefix}
	}
	return all
}

func variableSegment(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// written are the fields of a mapping; a nil node has none.
func (n *node) written() []field {
	if n == nil {
		return nil
	}
	return n.fields
}

// variableOf is the variable that overrides the key at a path.
func variableOf(path string) string {
	keys := strings.Split(path, ".")
	for i, key := range keys {
		keys[i] = variableSegment(key)
	}
	return variablePrefix + strings.Join(keys, variableSeparator)
}
