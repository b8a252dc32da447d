package telemetry

import (
	"io"
	"log/slog"
)

// NewLogger logs to w from level on: debug, info, warn or error. Any other level is taken as info,
// with a line that says so.
func NewLogger(w io.Writer, level string, json bool) *slog.Logger {
	var from slog.Level
	err := from.UnmarshalText([]byte(level))
	options := &slog.HandlerOptions{Level: from}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if json {
		handler = slog.NewJSONHandler(w, options)
	}
	log := slog.New(handler)
	if err != nil {
		log.Warn("unknown log level, using info", "level", level)
	}
	return log
}
