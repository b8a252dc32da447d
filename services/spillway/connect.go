package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/spillwayio/spillway/services/flume"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/security"
)

// connectFlags are those of check --connect.
type connectFlags struct {
	connect bool
	timeout time.Duration
	parts   []string
	samples string
}

func (f *connectFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.connect, "connect", false, "try what the pipeline connects to")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Second, "with --connect: how long each probe may take")
	cmd.Flags().StringSliceVar(&f.parts, "part", nil, "with --connect: only these parts, such as buffer or delivery.hdfs")
	cmd.Flags().StringVar(&f.samples, "samples", "", "with --connect: file of sample records, as spillway compare --samples takes them; - is stdin")
}

// check looks at the flags.
func (f *connectFlags) check(cmd *cobra.Command) error {
	for _, flag := range []string{"timeout", "part", "samples"} {
		if cmd.Flags().Changed(flag) && !f.connect {
			return &usageError{fmt.Errorf("--%s is for --connect", flag)}
		}
	}
	return checkTimeout(f.timeout)
}

// run tries the parts of a pipeline and has show print what was found. Its error says how many
// probes failed.
func (f *connectFlags) run(cmd *cobra.Command, cfg *config.Config, show func([]finding) error) error {
	x := &connector{cfg: cfg, timeout: f.timeout, log: slog.New(slog.DiscardHandler), clusters: make(map[string]string), topics: make(map[string][]string)}
	var names []string
	for _, p := range x.parts() {
		names = append(names, p.name)
	}
	for _, part := range f.parts {
		if !slices.ContainsFunc(names, func(n string) bool { return isPart(n, part) }) {
			return &usageError{fmt.Errorf("--part %q: the file has %s", part, strings.Join(names, ", "))}
		}
	}
	if f.samples != "" {
		var err error
		if x.samples, err = readSamples(cmd.InOrStdin(), f.samples); err != nil {
			return &usageError{err}
		}
	}
	found := x.connect(cmd.Context(), f.parts)
	if err := show(found); err != nil {
		return err
	}
	if n := failures(found); n > 0 {
		return fmt.Errorf("%d of %d probes failed", n, len(found))
	}
	return nil
}

// isPart says whether a part is the one that was asked for, or in it.
func isPart(name, asked string) bool { return name == asked || strings.HasPrefix(name, asked+".") }

// finding is what one probe found.
type finding struct {
	Part   string `json:"part"` // of the file, such as delivery.hdfs
	Check  string `json:"check"`
	Result string `json:"result"` // OK, WARNING or FAILED
	Detail string `json:"detail"`
	ToDo   string `json:"todo,omitempty"`
}

// doubt is an error that does not keep a service from working.
type doubt struct{ error }

func (d doubt) Unwrap() error { return d.error }

// connector tries what the parts of a pipeline connect to. The parts are tried side by side.
type connector struct {
	cfg     *config.Config
	timeout time.Duration // of each probe
	samples []flume.Sample
	log     *slog.Logger

	mu       sync.Mutex
	clusters map[string]string   // Kafka's ids, by part
	topics   map[string][]string // that are there, by source
}

// pipelinePart is a part of the pipeline with its probes, which run one after the other.
type pipelinePart struct {
	name string
	run  func(*probes)
}

// probes notes what the probes of a part found.
type probes struct {
	ctx     context.Context
	part    string
	timeout time.Duration
	found   []finding
}

// try runs a probe and notes what it found; todo says what to do when it fails. A probe that does
// not end in time is left behind.
func (p *probes) try(check, todo string, probe func(context.Context) (detail string, err error)) bool {
	ctx, cancel := context.WithTimeout(p.ctx, p.timeout)
	defer cancel()
	type answer struct {
		detail string
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		detail, err := probe(ctx)
		answers <- answer{detail, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	f := finding{Part: p.part, Check: check, Result: "OK", Detail: a.detail}
	if a.err != nil {
		f.Result, f.Detail, f.ToDo = "FAILED", oneLine(a.err.Error()), todo
		if errors.Is(a.err, context.DeadlineExceeded) {
			f.Detail = fmt.Sprintf("no answer within %s", p.timeout)
		}
		if errors.As(a.err, new(doubt)) {
			f.Result = "WARNING"
		}
	}
	p.found = append(p.found, f)
	return f.Result != "FAILED"
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// connect tries the parts whose names begin with one of only, or all, and returns what was found
// in the order of the file.
func (x *connector) connect(ctx context.Context, only []string) []finding {
	parts := slices.DeleteFunc(x.parts(), func(p pipelinePart) bool {
		return len(only) > 0 && !slices.ContainsFunc(only, func(asked string) bool { return isPart(p.name, asked) })
	})
	all := make([]*probes, len(parts))
	var g errgroup.Group
	for i, p := range parts {
		all[i] = &probes{ctx: ctx, part: p.name, timeout: x.timeout}
		if !strings.HasPrefix(p.name, "delivery.") {
			g.Go(func() error { p.run(all[i]); return nil })
		}
	}
	_ = g.Wait()              // no probe fails as a whole
	for i, p := range parts { // deliveries want to know which topics there are
		if strings.HasPrefix(p.name, "delivery.") {
			g.Go(func() error { p.run(all[i]); return nil })
		}
	}
	_ = g.Wait() // as above
	for i, p := range parts {
		if d := x.cfg.Delivery[strings.TrimPrefix(p.name, "delivery.")]; d != nil && d.Kafka != nil && !d.Kafka.AllowLoop {
			x.loops(all[i], d)
		}
	}
	var found []finding
	for _, p := range all {
		found = append(found, p.found...)
	}
	return found
}

func (x *connector) parts() (parts []pipelinePart) {
	if s := &x.cfg.Security; s.TLS != nil || s.Authenticates() || s.Client != (config.SecurityClient{}) {
		parts = append(parts, pipelinePart{"security", x.security})
	}
	if len(x.cfg.Buffer.Queues) > 0 {
		parts = append(parts, pipelinePart{"buffer", func(p *probes) {
			x.ports(p, x.cfg.Buffer.Listen, x.cfg.Buffer.HTTP)
			x.dataDir(p)
		}})
		for _, name := range slices.Sorted(maps.Keys(x.cfg.Buffer.Queues)) {
			if q := x.cfg.Buffer.Queues[name]; q.Store.Kafka != nil {
				parts = append(parts, pipelinePart{storePart(name), func(p *probes) { x.store(p, name, q) }})
			}
		}
	}
	if len(x.cfg.Ingest.Sources) > 0 {
		parts = append(parts, pipelinePart{"ingest", func(p *probes) {
			x.ports(p, x.cfg.Ingest.Listen, x.cfg.Ingest.HTTP)
			x.buffers(p)
		}})
	}
	for _, name := range slices.Sorted(maps.Keys(x.cfg.Ingest.Sources)) {
		parts = append(parts, pipelinePart{"ingest.sources." + name, func(p *probes) { x.source(p, name, x.cfg.Ingest.Sources[name]) }})
	}
	for _, name := range slices.Sorted(maps.Keys(x.cfg.Delivery)) {
		d := x.cfg.Delivery[name]
		parts = append(parts, pipelinePart{"delivery." + name, func(p *probes) {
			x.ports(p, d.Listen, d.HTTP)
			x.buffers(p)
			if d.Kafka != nil {
				x.target(p, d)
			} else {
				x.files(p, d)
			}
		}})
	}
	return parts
}

// security reads what the section names, as a service does.
func (x *connector) security(p *probes) {
	p.try("files", "correct the file that is named", func(context.Context) (string, error) {
		_, err := security.New(&x.cfg.Security, x.log)
		return "certificates, keys and tokens can be read", err
	})
}

// writeFindings prints a table, and below it what to do.
func writeFindings(out io.Writer, found []finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "RESULT", "PART", "CHECK", "DETAIL")
	for _, f := range found {
		row(w, f.Result, f.Part, f.Check, f.Detail)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range found {
		if f.ToDo == "" {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s: %s, %s: %s\n  %s.\n", f.Result, f.Part, f.Check, f.Detail, capital(f.ToDo)); err != nil {
			return err
		}
	}
	return nil
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// failures counts what keeps a service from working.
func failures(found []finding) (n int) {
	for _, f := range found {
		if f.Result == "FAILED" {
			n++
		}
	}
	return n
}
