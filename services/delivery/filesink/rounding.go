package filesink

import (
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

// rounding makes times multiples of a unit of the wall clock, as Flume's does.
type rounding struct {
	unit  int64 // seconds; 0 for no rounding
	units int64 // of these in the next larger one
	value int64
}

func newRounding(cfg *config.HDFS) rounding {
	if !cfg.Round {
		return rounding{}
	}
	r := rounding{unit: 1, units: 60, value: cfg.RoundValue}
	switch cfg.RoundUnit {
	case "minute":
		r.unit = 60
	case "hour":
		r.unit, r.units = 3600, 24
	}
	return r
}

// down returns the last time before at, or at, at which the unit on the clock was a multiple of
// the value. Where that is an hour that is there twice or not at all, it is the one after the
// clocks were changed.
func (r rounding) down(at time.Time) time.Time {
	if r.unit == 0 {
		return at
	}
	_, offset := at.Zone()
	wall := at.Unix() + int64(offset)
	wall -= mod(wall, r.unit)
	wall -= mod(wall/r.unit, r.units) % r.value * r.unit
	return time.Unix(wall-offsetOfWall(wall, at), 0).In(at.Location())
}

// mod is n modulo m, not negative.
func mod(n, m int64) int64 { return (n%m + m) % m }

// offsetOfWall is the offset to UTC, in seconds, when the clocks in the zone of near show wall,
// seconds since they showed 1970. It is that of the last change after which they may show it.
func offsetOfWall(wall int64, near time.Time) int64 {
	const most = 26 * 3600 // of any zone's offset, and more
	for at := time.Unix(wall+most, 0).In(near.Location()); ; {
		_, offset := at.Zone()
		begin, _ := at.ZoneBounds()
		if begin.IsZero() || begin.Unix()+int64(offset) <= wall {
			return int64(offset)
		}
		at = begin.Add(-time.Second)
	}
}
