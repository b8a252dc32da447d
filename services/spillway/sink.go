package main

import (
	"log/slog"
	"strings"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
	"github.com/spillwayio/spillway/services/delivery/kafkasink"
	"github.com/spillwayio/spillway/services/internal/config"
)

// newSink makes the destination of a delivery. It connects to nothing yet.
func newSink(d *config.Delivery, log *slog.Logger) (delivery.Sink, error) {
	if d.Kafka != nil {
		return kafkasink.New(d.Kafka, d.Subscription, log)
	}
	fs, err := newFS(d.HDFS, log)
	if err != nil {
		return nil, err
	}
	return filesink.New(d.HDFS, fs, log)
}

// newLetters makes the writer of dead letters to Kafka; nil when there is none.
func newLetters(d *config.Delivery, log *slog.Logger) (delivery.LetterWriter, error) {
	if d.DeadLetterTopic == nil {
		return nil, nil
	}
	return kafkasink.NewLetters(d.DeadLetterTopic, d.Subscription, log)
}

func newFS(h *config.HDFS, log *slog.Logger) (filesink.FS, error) {
	// Not parsed as a URL: '%', '#' and '?' are what they are in a directory's name.
	if directory, ok := strings.CutPrefix(h.URL, "file://"); ok {
		return localfs.New(directory)
	}
	return hdfsfs.New(h, log)
}
