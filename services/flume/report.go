package flume

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// Fate is what becomes of a key.
type Fate string

// The fates of a key, from good to bad.
const (
	Carried     Fate = "carried over"
	NotNeeded   Fate = "not needed"
	Dropped     Fate = "dropped by Flume"
	Changed     Fate = "changed"
	Unsupported Fate = "not supported"
)

// Entry is the fate of one key of the file.
type Entry struct {
	Line  int    `json:"line"`
	Key   string `json:"key"`
	Value string `json:"value"` // secrets are left out
	Fate  Fate   `json:"fate"`
	// Note says where the value went, why it is not needed, how its meaning changed, or what to
	// do.
	Note string `json:"note"`
}

// Report is the fate of every key of a file, and what is worth knowing besides.
type Report struct {
	Agent   string   `json:"agent"`
	Entries []Entry  `json:"keys"`
	Remarks []Remark `json:"remarks"`
}

// Count returns how many keys and remarks have the fate.
func (r *Report) Count(f Fate) int {
	n := 0
	for _, e := range r.Entries {
		if e.Fate == f {
			n++
		}
	}
	for _, m := range r.Remarks {
		if m.Fate == f {
			n++
		}
	}
	return n
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// WriteTable writes the report for people: the keys in the order of the file, then the remarks
// and a summary.
func (r *Report) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LINE\tKEY\tFATE\tNOTE")
	for _, e := range r.Entries {
		fmt.Fprintf(table, "%d\t%s = %s\t%s\t%s\n", e.Line, e.Key, cut(e.Value, 50), e.Fate, e.Note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, m := range r.Remarks {
		where := ""
		if m.Line > 0 {
			where = fmt.Sprintf("line %d: ", m.Line)
		}
		if _, err := fmt.Fprintf(w, "%s: %s%s\n", m.Fate, where, m.Text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nagent %s: %d carried over, %d not needed, %d changed in meaning, %d dropped as Flume drops them, %d not supported\n",
		r.Agent, r.Count(Carried), r.Count(NotNeeded), r.Count(Changed), r.Count(Dropped), r.Count(Unsupported))
	return err
}

func (r *Report) sort() {
	slices.SortStableFunc(r.Entries, func(a, b Entry) int { return cmp.Compare(a.Line, b.Line) })
	slices.SortStableFunc(r.Remarks, func(a, b Remark) int { return cmp.Compare(a.Line, b.Line) })
}

func cut(s string, most int) string {
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	return string(runes[:most-1]) + "…"
}

var secretKeys = regexp.MustCompile(`(?i)password|passphrase|secret|jaas\.config|token|credential|(access|api|private|consumer)\.?key`)

// redacted returns the value, or a mark in its place when the key names a secret.
func redacted(key, value string) string {
	if secretKeys.MatchString(key) {
		return "***"
	}
	return strings.ReplaceAll(value, "\n", `\n`)
}
