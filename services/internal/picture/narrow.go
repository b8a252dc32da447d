package picture

import (
	"cmp"
	"fmt"
)

// On a terminal of less than narrowBelow columns, what is a row of a table elsewhere is several
// short lines, and nothing is cut.
const (
	narrowBelow = 60
	leastWidth  = 40
)

func (d *drawing) narrow() bool { return d.style.Width < narrowBelow }

// wrapped adds text in as many lines as it needs, all of them indented.
func (d *drawing) wrapped(colour, indent, text string) {
	for _, line := range wrap(text, d.style.Width-len(indent)) {
		d.coloured(colour, indent+line)
	}
}

// narrowLevel draws a bar, and what it stands for below.
func (d *drawing) narrowLevel(colour, name string, l Level, words string) {
	d.coloured(colour, fmt.Sprintf("  %-8s %s %3.0f%%", name, bar(l, 10), 100*l.Share()))
	d.wrapped(colour, "     ", words)
}

func (d *drawing) narrowShard(s Shard) {
	at := fmt.Sprintf("shard %d at %s", s.Number, printable(s.Buffer))
	if s.State != "open" {
		d.wrapped(red, "  ", at+": "+printable(s.State))
		return
	}
	d.wrapped(diskColour(s.Disk), "  ", at)
	d.narrowLevel(diskColour(s.Disk), "", s.Disk, Bytes(s.Disk.Used)+full(s.Full))
}

func (d *drawing) narrowSubscription(s *Subscription, name string) {
	d.wrapped(cmp.Or(s.colour(), bold), "  ", printable(name))
	backlog := fmt.Sprintf("backlog %s, %s", Count(float64(s.Backlog)), Bytes(s.BacklogBytes))
	if s.Backlog > 0 {
		backlog += ", " + Duration(s.Age()) + " old"
	}
	d.wrapped("", "     ", backlog)
	d.wrapped("", "     ", fmt.Sprintf("out %s/s, drained %s", rate(s.OutPerSecond), drained(s)))
	d.wrapped("", "     ", "deliveries "+deliveries(s))
}
