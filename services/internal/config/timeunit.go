package config

import (
	"fmt"
	"strings"
)

// TimeUnit is a unit of the calendar or the clock.
type TimeUnit int

const (
	Year TimeUnit = iota
	Month
	Day
	Hour
	Minute
	Second
)

var timeUnits = []string{"year", "month", "day", "hour", "minute", "second"}

// told is which units the escapes of times tell.
var told = map[byte][]TimeUnit{
	'y': {Year}, 'Y': {Year}, 'm': {Month}, 'n': {Month}, 'b': {Month}, 'B': {Month}, 'd': {Day}, 'e': {Day},
	'j': {Month, Day}, 'D': {Year, Month, Day}, 'H': {Hour}, 'k': {Hour}, 'M': {Minute}, 'S': {Second},
	'c': {Year, Month, Day, Hour, Minute, Second}, 's': {Year, Month, Day, Hour, Minute, Second},
}

// PathTimeUnit is the unit of time that a directory of the template is about. An error says why a
// directory belongs to no time that is over once.
func PathTimeUnit(template string) (TimeUnit, error) {
	var units [Second + 1]bool
	half := false
	for rest := template; ; {
		_, escape, found := strings.Cut(rest, "%")
		if !found {
			break
		}
		size, err := escapeSize(escape, escapes)
		if err != nil {
			return 0, err
		}
		switch escape[0] {
		case 't':
			return 0, fmt.Errorf("%q has a directory for each millisecond", template)
		case 'I', 'l':
			half = true
		}
		for _, u := range told[escape[0]] {
			units[u] = true
		}
		rest = escape[size:]
	}
	if half && !units[Hour] {
		if !strings.Contains(template, "%p") {
			return 0, fmt.Errorf("%q has directories of hours that come twice a day; want %%H", template)
		}
		units[Hour] = true
	}
	finest := Second
	for !units[finest] {
		if finest--; finest < Year {
			return 0, fmt.Errorf("%q has no escape of a time, such as %%Y-%%m-%%d", template)
		}
	}
	for u := range finest {
		if !units[u] {
			return 0, fmt.Errorf("%q tells the %s and not the %s: a directory would be there for several times", template, timeUnits[finest], timeUnits[u])
		}
	}
	return finest, nil
}
