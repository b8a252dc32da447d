package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/kafkasink"
	"github.com/spillwayio/spillway/services/delivery/transform"
	"github.com/spillwayio/spillway/services/flume"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// placed is a sample with its directories on both sides.
type placed struct {
	Sink     string   `json:"sink"`
	Record   string   `json:"record"` // topic/partition@offset
	Time     string   `json:"time"`
	Flume    string   `json:"flume"`
	Spillway []string `json:"spillway"` // more than one when several deliveries write it
	Same     bool     `json:"same"`
}

// comparePaths puts samples through both rules.
func (f *compareFlags) comparePaths(cmd *cobra.Command, file string) error {
	data, err := readInput(cmd.InOrStdin(), file)
	if err != nil {
		return &usageError{fmt.Errorf("read Flume's file: %w", err)}
	}
	if f.version != "" && !flumeVersion.MatchString(f.version) {
		return &usageError{fmt.Errorf("--flume-version %q: want 1.5 to 1.11", f.version)}
	}
	options := flume.Options{Agent: f.agent, Version: f.version, Brokers: []string{"kafka:9092"}}
	cfg, err := f.pipelineOf(data, options)
	if err != nil {
		return err
	}
	samples, err := f.readSamples(cmd.InOrStdin(), data, options)
	if err != nil {
		return &usageError{err}
	}
	// Both sides have the same clock and the same machine.
	now := time.Now()
	host := func(what string) (string, error) { return "the-" + strings.ToLower(what), nil }
	places, err := flume.Places(data, options, samples, now, host)
	if err != nil {
		return &usageError{fmt.Errorf("%s: %w", file, err)}
	}
	ours := &placers{cfg: cfg, now: now, host: host, made: make(map[string]placeFunc)}
	var all []placed
	differ := 0
	for _, p := range places {
		s := &samples[p.Sample]
		dirs, err := ours.dirs(p.Delivery, s)
		if err != nil {
			return err
		}
		one := placed{Sink: p.Sink, Record: fmt.Sprintf("%s/%d@%d", s.Topic, s.Partition, s.Offset), Time: time.UnixMilli(s.Timestamp).UTC().Format(time.RFC3339), Flume: p.Dir, Spillway: dirs}
		if p.Err != nil {
			one.Flume = "(" + p.Err.Error() + ")"
		}
		one.Same = len(dirs) == 1 && dirs[0] == path.Clean("/"+p.Dir) && p.Err == nil
		if !one.Same {
			differ++
		}
		all = append(all, one)
	}
	return f.writePaths(cmd.OutOrStdout(), all, differ)
}

func (f *compareFlags) writePaths(w io.Writer, all []placed, differ int) error {
	if f.output == "json" {
		for _, p := range all {
			if err := json.NewEncoder(w).Encode(p); err != nil {
				return err
			}
		}
	} else {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "VERDICT\tSINK\tRECORD\tTIME\tFLUME\tSPILLWAY")
		for _, p := range all {
			verdict := "same"
			if !p.Same {
				verdict = "differs"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", verdict, p.Sink, p.Record, p.Time, p.Flume, strings.Join(p.Spillway, " and "))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	switch {
	case len(all) == 0:
		return errors.New("no HDFS sink of the agent gets any of the samples")
	case differ > 0:
		return fmt.Errorf("%d of %d samples go to different directories", differ, len(all))
	}
	return nil
}

// pipelineOf is the pipeline of --config, or what the import makes of Flume's file.
func (f *compareFlags) pipelineOf(data []byte, options flume.Options) (*config.Config, error) {
	if f.config != "" {
		return loadConfig(f.config)
	}
	result, err := flume.Import(data, options)
	if err != nil {
		return nil, &usageError{err}
	}
	if result.YAML == "" {
		return nil, &usageError{errors.New("nothing of the agent can be converted; spillway import-flume says why")}
	}
	cfg, err := config.Parse("the imported pipeline", []byte(result.YAML), nil)
	if err != nil {
		return nil, &usageError{err}
	}
	return cfg, nil
}

// maxSamples bounds the samples that are read.
const maxSamples = 100_000

func (f *compareFlags) readSamples(stdin io.Reader, data []byte, options flume.Options) ([]flume.Sample, error) {
	if f.samples == "" {
		return flume.DefaultSamples(data, options)
	}
	return readSamples(stdin, f.samples)
}

// readSamples reads lines of JSON, of a file or, with -, of stdin.
func readSamples(stdin io.Reader, file string) ([]flume.Sample, error) {
	text, err := readInput(stdin, file)
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	var all []flume.Sample
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	for {
		var s flume.Sample
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: sample %d: %w", file, len(all)+1, err)
		}
		if all = append(all, s); len(all) > maxSamples {
			return nil, fmt.Errorf("%s: has more than %d samples", file, maxSamples)
		}
	}
}

// placers say where the deliveries of a pipeline write samples.
type placers struct {
	cfg  *config.Config
	now  time.Time
	host func(string) (string, error)
	made map[string]placeFunc
}

// dirs returns the directories of a sample by the deliveries that an import made of one sink: of
// that name, or with a number behind it.
func (p *placers) dirs(delivery string, s *flume.Sample) ([]string, error) {
	numbered := regexp.MustCompile("^" + regexp.QuoteMeta(delivery) + `(-\d+)?$`)
	var all []string
	for _, name := range slices.Sorted(maps.Keys(p.cfg.Delivery)) {
		d := p.cfg.Delivery[name]
		if !numbered.MatchString(name) || d.HDFS == nil || !p.gets(d, s.Topic) {
			continue
		}
		if p.made[name] == nil {
			place, err := p.placer(d)
			if err != nil {
				return nil, fmt.Errorf("delivery.%s: %w", name, err)
			}
			p.made[name] = place
		}
		dir, delivered, err := p.made[name](s)
		switch {
		case err != nil:
			all = append(all, "("+err.Error()+")")
		case delivered:
			all = append(all, dir)
		}
	}
	return all, nil
}

// gets reports whether a topic is read for the delivery's subscription.
func (p *placers) gets(d *config.Delivery, topic string) bool {
	queue, sub, _ := strings.Cut(d.Subscription, "/")
	q := p.cfg.Buffer.Queues[queue]
	if q == nil || q.Subscriptions[sub] == nil {
		return false
	}
	read := false
	for _, source := range p.cfg.Ingest.Sources {
		read = read || source.Queue == queue && readsTopic(source, topic)
	}
	return read && slices.ContainsFunc(q.Subscriptions[sub].Topics, func(glob string) bool {
		ok, err := path.Match(glob, topic)
		return ok && err == nil
	})
}

// placeFunc says where a sample goes, and false when the delivery leaves it out.
type placeFunc func(*flume.Sample) (place string, delivered bool, err error)

// placer is of a delivery to files.
func (p *placers) placer(d *config.Delivery) (placeFunc, error) {
	place, err := filesink.Placer(d.HDFS, p.now, p.host)
	if err != nil {
		return nil, err
	}
	transformed, err := p.transformed(d)
	if err != nil {
		return nil, err
	}
	return func(s *flume.Sample) (string, bool, error) {
		r, err := transformed(s)
		if r == nil || err != nil {
			return "", false, err
		}
		return place(&spillwayv1.SourcePartition{Topic: s.Topic, Partition: s.Partition}, s.Offset, r), true, nil
	}, nil
}

// target is the placer of a delivery to Kafka.
func (p *placers) target(d *config.Delivery) (placeFunc, error) {
	transformed, err := p.transformed(d)
	if err != nil {
		return nil, err
	}
	return func(s *flume.Sample) (string, bool, error) {
		r, err := transformed(s)
		if r == nil || err != nil {
			return "", false, err
		}
		name, problem := kafkasink.TopicOf(d.Kafka.Topic, s.Topic, r.Headers)
		if problem != "" {
			return "", false, errors.New(problem)
		}
		return name, true, nil
	}, nil
}

// transformed returns a function that makes the record of a sample that a delivery's sink gets. It
// is nil when the delivery leaves the record out.
func (p *placers) transformed(d *config.Delivery) (func(*flume.Sample) (*recordbatch.Record, error), error) {
	chain, err := transform.New(d.Transforms)
	if err != nil {
		return nil, err
	}
	queue, sub, _ := strings.Cut(d.Subscription, "/")
	var filters []*spillwayv1.HeaderFilter
	for _, f := range p.cfg.Buffer.Queues[queue].Subscriptions[sub].Headers {
		filters = append(filters, &spillwayv1.HeaderFilter{Name: f.Name, Values: slices.Concat(f.In, f.NotIn), Except: len(f.NotIn) > 0})
	}
	chain = chain.Behind(filters)
	return func(s *flume.Sample) (*recordbatch.Record, error) {
		r := &recordbatch.Record{Value: []byte(s.Value), TimestampMs: s.Timestamp}
		if s.Key != nil {
			r.Key = []byte(*s.Key)
		}
		for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
			r.Headers = append(r.Headers, recordbatch.Header{Name: []byte(name), Value: []byte(s.Headers[name])})
		}
		if chain != nil {
			if err := chain.Apply(r); errors.Is(err, transform.ErrDropped) {
				return nil, nil
			} else if err != nil {
				return nil, err
			}
		}
		return r, nil
	}, nil
}
