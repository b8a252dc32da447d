// Package transform changes records between the buffer and a destination, or leaves them out: the
// transforms of a delivery in the configuration, in their order.
//
// A transform that changes a record points it to new bytes: what it pointed to before stays as it
// is, as it lies in the payload that was leased.
package transform

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/tidwall/gjson"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// ErrDropped is returned by Apply for a record that is to be left out on purpose.
var ErrDropped = errors.New("record is left out by a transform")

// Chain applies transforms in order. It may be used by one goroutine at a time; Clone makes one
// for another.
type Chain struct {
	filters []headerFilter // of the subscription; they come first
	steps   []step
	headers []recordbatch.Header // of the record at work, so that the caller's stay as they are
}

// Clone returns a chain of the same transforms; nil for nil.
func (c *Chain) Clone() *Chain {
	if c == nil {
		return nil
	}
	return &Chain{filters: c.filters, steps: c.steps}
}

// step changes a record. It returns ErrDropped to leave it out; another error means that it
// cannot work on the record.
type step struct {
	name    string
	apply   func(*Chain, *recordbatch.Record) error
	onError string
}

// New compiles transforms that the configuration has checked. It returns nil when there are none.
func New(transforms []config.Transform) (*Chain, error) {
	if len(transforms) == 0 {
		return nil, nil
	}
	c := &Chain{}
	for i := range transforms {
		s, err := compile(&transforms[i])
		if err != nil {
			return nil, fmt.Errorf("transform %d: %w", i+1, err)
		}
		c.steps = append(c.steps, s)
	}
	return c, nil
}

// Apply changes the record in place. It returns ErrDropped for a record that is to be left out,
// and any other error for one that can never be delivered, with the reason. The headers of the
// record are valid until the next call.
func (c *Chain) Apply(r *recordbatch.Record) error {
	for i := range c.filters {
		if !c.filters[i].passes(r) {
			return ErrDropped
		}
	}
	if len(c.steps) == 0 {
		return nil
	}
	c.headers = append(c.headers[:0], r.Headers...)
	r.Headers = c.headers
	for i := range c.steps {
		s := &c.steps[i]
		err := s.apply(c, r)
		switch {
		case err == nil || err != ErrDropped && s.onError == "keep":
		case err == ErrDropped || s.onError == "drop":
			return ErrDropped
		default:
			return fmt.Errorf("transform %d, %s: %w", i+1, s.name, err)
		}
	}
	c.headers = r.Headers
	return nil
}

func compile(t *config.Transform) (step, error) {
	s := step{onError: t.OnError}
	var err error
	switch {
	case t.SetHeader != nil:
		s.name, s.apply = "set_header", setHeader(t.SetHeader)
	case t.RemoveHeader != nil:
		s.name = "remove_header"
		s.apply, err = removeHeader(t.RemoveHeader)
	case t.ExtractHeader != nil:
		s.name = "extract_header"
		s.apply, err = extractHeader(t.ExtractHeader)
	case t.ReplaceValue != nil:
		s.name = "replace_value"
		s.apply, err = replaceValue(t.ReplaceValue)
	case t.SetTime != nil:
		s.name = "set_time"
		s.apply, err = setTime(t.SetTime)
	case t.Keep != nil:
		s.name = "keep"
		s.apply, err = filter(t.Keep, true)
	case t.Drop != nil:
		s.name = "drop"
		s.apply, err = filter(t.Drop, false)
	case t.Decode == "flume_event":
		s.name, s.apply = "decode", decodeFlumeEvent
	case t.Encode == "flume_event":
		s.name, s.apply = "encode", encodeFlumeEvent
	default:
		err = errors.New("it is empty")
	}
	return s, err
}

// put sets the header of a name, in the place of all that are there.
func put(r *recordbatch.Record, name, value []byte) {
	r.Headers = slices.DeleteFunc(r.Headers, func(h recordbatch.Header) bool { return bytes.Equal(h.Name, name) })
	r.Headers = append(r.Headers, recordbatch.Header{Name: name, Value: value})
}

func setHeader(t *config.SetHeader) func(*Chain, *recordbatch.Record) error {
	name, value := []byte(t.Name), []byte(t.Value)
	return func(_ *Chain, r *recordbatch.Record) error {
		if t.Keep {
			if _, there := r.Header(t.Name); there {
				return nil
			}
		}
		put(r, name, value)
		return nil
	}
}

func removeHeader(t *config.RemoveHeader) (func(*Chain, *recordbatch.Record) error, error) {
	matching, err := regexp.Compile(t.Matching)
	return func(_ *Chain, r *recordbatch.Record) error {
		r.Headers = slices.DeleteFunc(r.Headers, func(h recordbatch.Header) bool {
			if t.Name != "" {
				return string(h.Name) == t.Name
			}
			return matching.Match(h.Name)
		})
		return nil
	}, err
}

// field returns a reader of a field of records. The reader says whether the field is there.
func field(from string) (func(*recordbatch.Record) ([]byte, bool), error) {
	kind, name, err := config.SplitField(from)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "key":
		return func(r *recordbatch.Record) ([]byte, bool) { return r.Key, r.Key != nil }, nil
	case "header":
		return func(r *recordbatch.Record) ([]byte, bool) { return r.Header(name) }, nil
	case "json":
		return func(r *recordbatch.Record) ([]byte, bool) {
			if !gjson.ValidBytes(r.Value) {
				return nil, false
			}
			found := gjson.GetBytes(r.Value, name)
			return []byte(found.String()), found.Exists()
		}, nil
	}
	return func(r *recordbatch.Record) ([]byte, bool) { return r.Value, r.Value != nil }, nil
}

func extractHeader(t *config.ExtractHeader) (func(*Chain, *recordbatch.Record) error, error) {
	read, err := field(t.From)
	if err != nil {
		return nil, err
	}
	name := []byte(t.Name)
	expression, err := regexp.Compile(t.Regex)
	return func(_ *Chain, r *recordbatch.Record) error {
		value, there := read(r)
		if !there {
			return nil
		}
		if t.Regex != "" {
			found := expression.FindSubmatch(value)
			if found == nil {
				return nil
			}
			value = found[min(t.Group, len(found)-1)]
		}
		put(r, name, value)
		return nil
	}, err
}

func replaceValue(t *config.ReplaceValue) (func(*Chain, *recordbatch.Record) error, error) {
	expression, err := regexp.Compile(t.Regex)
	with := []byte(t.With)
	return func(_ *Chain, r *recordbatch.Record) error {
		if r.Value == nil || !expression.Match(r.Value) {
			return nil
		}
		value := expression.ReplaceAll(r.Value, with)
		if r.Size()-len(r.Value)+len(value) > recordbatch.MaxRecordBytes {
			return fmt.Errorf("the new value has %d bytes, and a record has at most %d MiB", len(value), recordbatch.MaxRecordBytes>>20)
		}
		r.Value = value
		return nil
	}, err
}

func filter(m *config.Match, keep bool) (func(*Chain, *recordbatch.Record) error, error) {
	read, err := field(m.From)
	if err != nil {
		return nil, err
	}
	expression, err := regexp.Compile(m.Regex)
	return func(_ *Chain, r *recordbatch.Record) error {
		value, _ := read(r)
		matches := string(value) == m.Equals
		if m.Regex != "" {
			matches = expression.Match(value)
		}
		if matches != keep {
			return ErrDropped
		}
		return nil
	}, err
}

// units are how many of each are a second.
var units = map[string]int64{"seconds": 1, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}

func setTime(t *config.SetTime) (func(*Chain, *recordbatch.Record) error, error) {
	read, err := field(t.From)
	return func(_ *Chain, r *recordbatch.Record) error {
		value, there := read(r)
		if !there {
			return fmt.Errorf("the record has no %s", t.From)
		}
		ms, err := parseTime(value, t.Unit)
		if err != nil {
			return fmt.Errorf("%s: %w", t.From, err)
		}
		r.TimestampMs = ms
		return nil
	}, err
}

// parseTime returns milliseconds since 1970.
func parseTime(value []byte, unit string) (int64, error) {
	text := string(bytes.TrimSpace(value))
	if unit == "rfc3339" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return 0, fmt.Errorf("%.100q is no time such as 2026-01-31T12:00:00Z", text)
		}
		return at.UnixMilli(), nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil {
		if perMs := units[unit] / 1e3; perMs > 0 {
			return n / perMs, nil
		}
		if n > -1<<53 && n < 1<<53 {
			return n * 1e3, nil
		}
	}
	f, err := strconv.ParseFloat(text, 64) // 1767225600.123
	if ms := f * 1e3 / float64(max(units[unit], 1)); err == nil && ms > -1<<53 && ms < 1<<53 {
		return int64(ms), nil
	}
	return 0, fmt.Errorf("%.100q is no number of %s", text, unit)
}
