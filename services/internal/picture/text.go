package picture

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode"
)

// Style says how Lines draws.
type Style struct {
	Width  int  // columns; at least 40 are used
	Height int  // lines: troubles take half of them at most; 0: as many as there are
	Colour bool // with ANSI colours
}

// Lines draws the picture as text: what is wrong first, then every queue from its sources to its
// destinations. No line is longer than the style's width. Names and reasons come from others:
// what is not printable in them is replaced.
func (p *Picture) Lines(style Style) []string {
	d := &drawing{style: style}
	d.style.Width = max(style.Width, leastWidth)
	d.troubles(p.Troubles)
	for _, q := range p.Queues {
		d.line("")
		d.queue(q)
	}
	return d.lines
}

// drawing is a text in the making.
type drawing struct {
	style Style
	lines []string
}

// Colours of ANSI terminals.
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// line adds a line of plain text, cut to the width.
func (d *drawing) line(text string) { d.coloured("", text) }

// coloured adds a line in one colour.
func (d *drawing) coloured(colour, text string) {
	text = Cut(strings.TrimRight(text, " "), d.style.Width)
	if d.style.Colour && colour != "" && text != "" {
		text = colour + text + plain
	}
	d.lines = append(d.lines, text)
}

func (d *drawing) troubles(all []Trouble) {
	if len(all) == 0 {
		d.line("No trouble.")
	}
	for i, t := range all {
		if d.style.Height > 0 && len(d.lines) > max(2, d.style.Height/2-4) { // four lines are one of them, mostly
			d.wrapped("", "   ", fmt.Sprintf("and %d more; spillway top --once shows all", len(all)-i))
			return
		}
		mark, colour := "!", yellow
		if t.Severity == Critical {
			mark, colour = "!!", red
		}
		for i, line := range wrap(printable(t.About+": "+t.What+"."), d.style.Width-3) {
			if i > 0 {
				mark = ""
			}
			d.coloured(colour, fmt.Sprintf("%-2s %s", mark, line))
		}
		for _, line := range wrap(printable(t.Do), d.style.Width-5) {
			d.line("     " + line)
		}
	}
}

func (d *drawing) queue(q *Queue) {
	title := printable(q.Name)
	if q.State != "open" {
		if title += "   " + printable(q.State); d.narrow() {
			d.wrapped(bold, "", title)
		} else {
			d.coloured(bold, title)
		}
		return
	}
	d.coloured(bold, title)
	if d.narrow() {
		d.wrapped("", "  ", sources(q))
	} else {
		d.line("  sources  " + sources(q))
	}
	d.level("window", q.Memory, "")
	d.level("disk", q.Disk, full(q.Full))
	d.shards(q.Shards)
	format := fmt.Sprintf("  %%-%d.%ds %%7s %%9s %%6s %%7s %%7s  %%s", nameWidth, nameWidth)
	if !d.narrow() {
		d.line(fmt.Sprintf(format, "SUBSCRIPTION", "BACKLOG", "BYTES", "AGE", "OUT/S", "DRAINED", "DELIVERIES"))
	}
	for _, s := range q.Subscriptions {
		_, name, _ := strings.Cut(s.Name, "/")
		if d.narrow() {
			d.narrowSubscription(s, name)
			continue
		}
		age := "-"
		if s.Backlog > 0 {
			age = Duration(s.Age())
		}
		d.coloured(s.colour(), fmt.Sprintf(format, Cut(printable(name), nameWidth), Count(float64(s.Backlog)), Bytes(s.BacklogBytes), age, rate(s.OutPerSecond), drained(s), deliveries(s)))
	}
}

const (
	nameWidth = 18
	barWidth  = 24
)

func sources(q *Queue) string {
	if len(q.Ingests) == 0 {
		return "no ingest is connected"
	}
	var names []string
	for _, i := range q.Ingests {
		name := i.Name
		if len(i.Sources) > 0 {
			name += " (" + strings.Join(i.Sources, ", ") + ")"
		}
		names = append(names, name)
	}
	return fmt.Sprintf("%s/s from %s", rate(q.InPerSecond), printable(strings.Join(names, ", ")))
}

// level draws a bar.
func (d *drawing) level(name string, l Level, more string) {
	colour := ""
	if name != "window" { // full, that only means that the queue spills
		colour = diskColour(l)
	}
	words := fmt.Sprintf("%s of %s%s", Bytes(l.Used), Bytes(l.Limit), more)
	if d.narrow() {
		d.narrowLevel(colour, name, l, words)
		return
	}
	d.coloured(colour, fmt.Sprintf("  %-8s %s %3.0f%%  %s", name, bar(l, barWidth), 100*l.Share(), words))
}

func bar(l Level, width int) string {
	filled := min(width, int(math.Round(l.Share()*float64(width))))
	if l.Used > 0 {
		filled = max(filled, 1)
	}
	return "[" + strings.Repeat("#", filled) + strings.Repeat(".", width-filled) + "]"
}

func diskColour(l Level) string {
	switch share := l.Share(); {
	case share >= fullShare:
		return red
	case share >= 0.8:
		return yellow
	}
	return ""
}

// maxShards is how many are drawn one by one.
const maxShards = 8

// shards draws the disk of each part of a queue, the fullest first when there are many.
func (d *drawing) shards(all []Shard) {
	if len(all) > maxShards {
		all = slices.Clone(all)
		slices.SortStableFunc(all, func(a, b Shard) int { return cmp.Compare(b.Disk.Share(), a.Disk.Share()) })
		defer func(n int) { d.line(fmt.Sprintf("   and %d shards that are less full", n)) }(len(all) - maxShards)
		all = all[:maxShards]
	}
	for _, s := range all {
		switch {
		case s.Of <= 1: // a queue of one buffer
		case d.narrow():
			d.narrowShard(s)
		case s.State != "open":
			d.coloured(red, fmt.Sprintf("  shard %-3d %-20s %s", s.Number, printable(s.Buffer), printable(s.State)))
		default:
			d.coloured(diskColour(s.Disk), fmt.Sprintf("  shard %-3d %-20s %s %3.0f%%  %s%s", s.Number, printable(s.Buffer), bar(s.Disk, 10), 100*s.Disk.Share(), Bytes(s.Disk.Used), full(s.Full)))
		}
	}
}

func full(f Forecast) string {
	left, ok := f.Left()
	switch {
	case ok && left == 0:
		return ", full"
	case ok:
		return ", full in " + Duration(left)
	}
	return ""
}

func rate(perSecond *float64) string {
	if perSecond == nil {
		return "?"
	}
	return Count(*perSecond)
}

func drained(s *Subscription) string {
	left, ok := s.Drained.Left()
	switch {
	case !s.Behind():
		return "-"
	case ok:
		return Duration(left)
	case s.Drained.Never():
		return "never"
	}
	return "?"
}

func deliveries(s *Subscription) string {
	var names []string
	for _, d := range s.Deliveries {
		name := d.Consumer
		if !d.Live {
			name += " (dead)"
		}
		if d.Buffer != "" && slices.Contains(names, name) {
			continue // it has a session with the buffer of each shard
		}
		names = append(names, name)
	}
	text := printable(strings.Join(names, ", "))
	if text == "" {
		text = "none"
	}
	if s.Paused {
		text = "PAUSED " + text
	}
	return text
}

// colour is that of the worst trouble.
func (s *Subscription) colour() string {
	colour := ""
	for _, t := range s.troubles() {
		if t.Severity == Critical {
			return red
		}
		colour = yellow
	}
	return colour
}

// printable replaces what a terminal would obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, text)
}

// Cut returns the first columns of text; ~ shows that something is left out.
func Cut(text string, columns int) string {
	if runes := []rune(text); len(runes) > columns {
		return string(runes[:columns-1]) + "~"
	}
	return text
}

// wrap breaks text into lines between words; a word that is too long is broken, too.
func wrap(text string, columns int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		for len([]rune(word)) > columns {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			runes := []rune(word)
			lines, word = append(lines, string(runes[:columns])), string(runes[columns:])
		}
		switch {
		case line == "":
			line = word
		case len([]rune(line))+1+len([]rune(word)) <= columns:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
