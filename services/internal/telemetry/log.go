package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"unicode/utf8"
)

// maxValueBytes bounds each value in a line of the log: names and reasons come from others.
const maxValueBytes = 4 << 10

// NewLogger logs to w from level on: debug, info, warn or error. Any other level is taken as
// info, with a line that says so. Values longer than 4 KiB are cut. When w is a *Lines, a line
// says how many others it dropped.
func NewLogger(w io.Writer, level string, json bool) *slog.Logger {
	var from slog.Level
	err := from.UnmarshalText([]byte(level))
	options := &slog.HandlerOptions{Level: from, ReplaceAttr: cutValue}
	newHandler := func(w io.Writer) slog.Handler {
		if json {
			return slog.NewJSONHandler(w, options)
		}
		return slog.NewTextHandler(w, options)
	}
	log := slog.New(newHandler(w))
	if lines, ok := w.(*Lines); ok {
		direct := slog.New(newHandler(lines.to))
		lines.mu.Lock()
		lines.tell = func(dropped int) {
			direct.Warn("the log was too slow; lines were dropped", "lines", dropped)
		}
		lines.mu.Unlock()
	}
	if err != nil {
		log.Warn("unknown log level, using info", "level", level)
	}
	return log
}

// cutValue cuts what is too long for a line. What it does not cut it leaves as it is.
func cutValue(_ []string, a slog.Attr) slog.Attr {
	var text string
	switch a.Value.Kind() {
	case slog.KindString:
		text = a.Value.String()
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			text = err.Error()
		} else {
			text = fmt.Sprint(a.Value.Any())
		}
	}
	if len(text) <= maxValueBytes {
		return a
	}
	end := maxValueBytes
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return slog.String(a.Key, fmt.Sprintf("%s… (%d bytes)", text[:end], len(text)))
}
