package flume

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// bucketPath is Flume's class BucketPath with what a sink gives it: how Flume itself makes names
// of templates. It shares no code with the file sink, so that one can be held against the other.
type bucketPath struct {
	zone  *time.Location
	round bool
	unit  string // second, minute or hour
	value int
	local bool // useLocalTimeStamp
	now   time.Time
	host  func(what string) (string, error)
}

// bucketTag is Flume's TAG_REGEX.
var bucketTag = regexp.MustCompile(`%(\w|%)|%\{([\w.-]+)\}|%\[(\w+)\]`)

// errNoTime is what Flume throws for each event, for ever.
var errNoTime = errors.New("no header timestamp: Flume fails, and tries the batch for ever")

// escape returns what a template yields for an event with these headers.
func (b *bucketPath) escape(template string, headers map[string]string) (string, error) {
	var failed error
	out := bucketTag.ReplaceAllStringFunc(template, func(tag string) string {
		m := bucketTag.FindStringSubmatch(tag)
		switch {
		case m[2] != "":
			return headers[m[2]]
		case m[3] != "":
			value, err := b.host(m[3])
			failed = errors.Join(failed, err)
			return value
		case m[1] == "%":
			return "%"
		}
		at, err := b.time(headers)
		if err != nil {
			failed = err
			return ""
		}
		return b.shorthand(m[1][0], at)
	})
	return out, failed
}

func (b *bucketPath) time(headers map[string]string) (time.Time, error) {
	if b.local {
		return b.now, nil
	}
	text, there := headers["timestamp"]
	if !there || text == "" {
		return time.Time{}, errNoTime
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("the header timestamp is %q, which Flume cannot read", text)
	}
	return time.UnixMilli(ms), nil
}

// shorthand is Flume's replaceShorthand: a letter and a format of Java's SimpleDateFormat.
func (b *bucketPath) shorthand(letter byte, at time.Time) string {
	if letter == 't' {
		return strconv.FormatInt(at.UnixMilli(), 10)
	}
	at = b.down(at.In(b.zone))
	switch letter {
	case 's':
		return strconv.FormatInt(at.Unix(), 10)
	case 'e':
		return strconv.Itoa(at.Day())
	case 'j':
		return fmt.Sprintf("%03d", at.YearDay())
	case 'k':
		return strconv.Itoa(at.Hour())
	case 'n':
		return strconv.Itoa(int(at.Month()))
	case 'p':
		return at.Format("PM")
	}
	return at.Format(map[byte]string{'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'c': "Mon Jan 2 15:04:05 2006", 'd': "02", 'D': "01/02/06", 'H': "15",
		'I': "03", 'l': "3", 'm': "01", 'M': "04", 'S': "05", 'y': "06", 'Y': "2006", 'z': "-0700"}[letter]) // "" for others
}

// down is Flume's TimestampRoundDownUtil: it rounds the field of the calendar.
func (b *bucketPath) down(at time.Time) time.Time {
	if !b.round || b.value <= 0 {
		return at
	}
	hour, minute, second := at.Hour(), at.Minute(), at.Second()
	switch b.unit {
	case "hour":
		hour, minute, second = hour-hour%b.value, 0, 0
	case "minute":
		minute, second = minute-minute%b.value, 0
	default:
		second -= second % b.value
	}
	return onClock(time.Date(at.Year(), at.Month(), at.Day(), hour, minute, second, 0, time.UTC), b.zone)
}

// onClock returns when the clocks of a zone show what clock shows in UTC. As in Java's Calendar,
// of a time that is there twice or not at all it is the one by the later rule that has begun by
// then.
func onClock(clock time.Time, zone *time.Location) time.Time {
	for at := clock.Add(48 * time.Hour).In(zone); ; {
		_, offset := at.Zone()
		begin, _ := at.ZoneBounds()
		shown := clock.Add(-time.Duration(offset) * time.Second)
		if begin.IsZero() || !shown.Before(begin) {
			return shown.In(zone)
		}
		at = begin.Add(-time.Second)
	}
}
