package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File     string
	Line     int    // 0 when it is about the file as a whole
	Variable string // the environment variable at fault; then File and Line do not matter
	Message  string // names the key by its whole path
}

func (p Problem) String() string {
	switch {
	case p.Variable != "":
		return p.Variable + ": " + p.Message
	case p.Line == 0:
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// Problems is the error of Parse and Load: all that is wrong, by line, one line of text each.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// place is where something was written: a line of the file, or a variable of the environment.
type place struct {
	line     int
	variable string
}

// report collects problems while a configuration is read.
type report struct {
	file     string
	places   map[string]place // of every key that was written, by path
	blamed   map[string]bool  // paths that have a problem
	problems Problems
	warnings Problems // values that are allowed, and most likely not what is meant
}

func newReport(file string) *report {
	return &report{file: file, places: map[string]place{}, blamed: map[string]bool{}}
}

// at adds a problem at a place.
func (r *report) at(p place, format string, args ...any) {
	r.problems = append(r.problems, Problem{File: r.file, Line: p.line, Variable: p.variable, Message: fmt.Sprintf(format, args...)})
}

// key adds a problem with the key at path, unless it or a key around it has one already: what
// follows from a first mistake is noise. A key that was not written is blamed on the nearest
// written one around it.
func (r *report) key(path, format string, args ...any) {
	written := ""
	for around := path; around != ""; around = around[:max(strings.LastIndexAny(around, ".["), 0)] {
		if r.blamed[around] {
			return
		}
		if _, ok := r.places[around]; ok && written == "" {
			written = around
		}
	}
	r.blamed[path] = true
	r.at(r.places[written], "%s: %s", cmp.Or(path, "the file"), fmt.Sprintf(format, args...))
}

// warn adds a warning about the key at path.
func (r *report) warn(path, format string, args ...any) {
	here := place{}
	for around := path; around != ""; around = around[:max(strings.LastIndexAny(around, ".["), 0)] {
		if p, ok := r.places[around]; ok {
			here = p
			break
		}
	}
	r.warnings = append(r.warnings, Problem{File: r.file, Line: here.line, Variable: here.variable, Message: fmt.Sprintf("%s: %s", path, fmt.Sprintf(format, args...))})
}

// err is nil when there is no problem.
func (r *report) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	return r.problems.sorted()
}

// sorted sorts by place, and leaves out what is there twice.
func (p Problems) sorted() Problems {
	slices.SortFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Variable, b.Variable), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(p)
}

// join is the path of a key below another.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// in says where a key is, for a message.
func in(path string) string {
	if path == "" {
		return "at the top level"
	}
	return "in " + path
}

// alternatives is "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// index is the path of an item of a list.
func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
