package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// account is what became of the records of a run, from reading the destinations.
type account struct {
	In           int64     `json:"in"`
	Destinations []balance `json:"destinations"`
}

// balance is one destination. Delivered + Lost + Pending is what went in.
type balance struct {
	Name      string `json:"name"`
	Delivered int64  `json:"delivered"` // different records found
	Lost      int64  `json:"lost"`
	Doubled   int64  `json:"doubled"` // records found more than once, each surplus copy counted
	Pending   int64  `json:"pending"` // in the source or in the buffer
}

// account reads the files and the topics of the test Kafka again.
func (d *dev) account(ctx context.Context, end *devStats) (*account, error) {
	fmt.Fprintln(d.out, "reading back what arrived")
	d.targetLis.setBroken(false)
	a := &account{In: d.in()}
	files, test := newTally(d.generator), newTally(d.generator)
	if err := files.readFiles(filepath.Join(d.dir, "files")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := test.readTopics(ctx, d.target.ListenAddrs()); err != nil {
		return nil, err
	}
	for _, dest := range []struct {
		name, subscription string
		tally              *tally
	}{{"files", devFiles, files}, {"test Kafka", devTest, test}} {
		b := balance{Name: dest.name, Delivered: dest.tally.distinct, Doubled: dest.tally.doubled}
		if end == nil {
			b.Pending = a.In - b.Delivered
		} else {
			b.Pending = a.In - end.appended + end.pending(dest.subscription)
		}
		b.Lost = a.In - b.Delivered - b.Pending
		a.Destinations = append(a.Destinations, b)
	}
	return a, errors.Join(files.err("files"), test.err("test Kafka"))
}

func (a *account) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nDESTINATION\tIN\tDELIVERED\tLOST\tDOUBLED\tPENDING\t")
	for _, b := range a.Destinations {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t\n", b.Name, a.In, b.Delivered, b.Lost, b.Doubled, b.Pending)
	}
	return w.Flush()
}

// verdict is an error when a promise was broken. Kafka's is at least once.
func (a *account) verdict() error {
	var errs []error
	for _, b := range a.Destinations {
		if b.Lost != 0 {
			errs = append(errs, fmt.Errorf("%s: %d records are lost", b.Name, b.Lost))
		}
		if b.Doubled != 0 && b.Name == "files" {
			errs = append(errs, fmt.Errorf("%s: %d records are doubled", b.Name, b.Doubled))
		}
	}
	return errors.Join(errs...)
}

// tally counts records by topic and number.
type tally struct {
	seen              map[string][]bool // by topic, then number − 1
	distinct, doubled int64
	strange           []string // values that no generator wrote; the first few
}

func newTally(g *generator) *tally {
	t := &tally{seen: make(map[string][]bool)}
	for topic, written := range g.written {
		t.seen[topic] = make([]bool, written.Load())
	}
	return t
}

// add notes a value found for a topic.
func (t *tally) add(topic string, value []byte) {
	number, _, _ := bytes.Cut(value, []byte(" "))
	n, err := strconv.ParseInt(string(number), 10, 64)
	seen := t.seen[topic]
	switch {
	case err != nil || n < 1 || n > int64(len(seen)):
		if len(t.strange) < 5 {
			t.strange = append(t.strange, fmt.Sprintf("%s: %.60q", topic, value))
		}
	case seen[n-1]:
		t.doubled++
	default:
		seen[n-1] = true
		t.distinct++
	}
}

func (t *tally) err(where string) error {
	if len(t.strange) == 0 {
		return nil
	}
	return fmt.Errorf("%s: values that were never written: %s", where, strings.Join(t.strange, "; "))
}

// readFiles reads all files below root; the first directory is the topic.
func (t *tally) readFiles(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		topic, _, _ := strings.Cut(filepath.ToSlash(relative), "/")
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			t.add(topic, lines.Bytes())
		}
		return errors.Join(lines.Err(), f.Close())
	})
}

// readTopics reads all topics from their first to their last record.
func (t *tally) readTopics(ctx context.Context, brokers []string) error {
	client := kafkaclient.New(brokers, "spillway-dev", kafkaclient.Access{})
	defer client.Close()
	cluster, err := client.Cluster(ctx)
	if err != nil {
		return err
	}
	for _, topic := range devTopics {
		for partition := range cluster.Topics[topic].Partitions {
			if err := t.readPartition(ctx, client, topic, partition); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tally) readPartition(ctx context.Context, client *kafkaclient.Client, topic string, partition int) error {
	at, end, err := client.Offsets(ctx, topic, partition)
	if err != nil {
		return err
	}
	for at < end {
		fetched, err := client.Fetch(ctx, kafkaclient.Request{Topic: topic, Partition: partition, Offset: at, MinBytes: 1, MaxBytes: 4 << 20, MaxWait: time.Second})
		if err != nil {
			return err
		}
		at, err = fetched.Each(func(_ int64, r *recordbatch.Record) error {
			t.add(topic, r.Value)
			return nil
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}
