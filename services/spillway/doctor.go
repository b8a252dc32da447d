package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
)

// partBytes bounds each file of the archive.
const partBytes = 16 << 20

func newDoctor() *cobra.Command {
	var d doctor
	var flags clientFlags
	var file, contextName, out string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Collects what support needs in one archive: status, metrics, configuration; no secrets, no records",
		Long: `Asks the services of a pipeline for all that they tell of their state, and writes a .tar.gz: the answers to the calls that
list and show, metrics, readiness, what their goroutines are at, the configuration as it is in force, and what this program
was built of.

Secrets are left out, and so is all that records contain: keys, values, headers, reasons of dead letters, sink state. Names of
hosts, topics, groups, users and files are in it, and so are errors; look at it before you hand it out.

The services are those of the file (--config: this machine's, and buffers) or of a context, or those that are named. What does
not answer is noted in errors.txt; the exit status is 1 when nothing answered.`,
		Example: "  spillway doctor -c pipeline.yaml\n  spillway doctor --context prod --http https://buffer.prod:7401 --http https://ingest-1.prod:7411",
		Args:    noArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTimeout(d.timeout); err != nil {
			return err
		}
		if file != "" && contextName != "" {
			return &usageError{errors.New("--context and --config both say where the services are; want one")}
		}
		if err := d.find(file, contextName); err != nil {
			return err
		}
		for _, address := range slices.Concat(d.buffers, d.ingests, d.deliveries) {
			if !config.IsAddress(address) {
				return &usageError{fmt.Errorf("%q: want host:port", address)}
			}
		}
		var err error
		if d.client, err = flags.client(d.shown); err != nil {
			return err
		}
		if out == "" {
			out = "spillway-doctor-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
		}
		return d.write(cmd, out)
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "file of the pipeline")
	f.StringVar(&contextName, "context", "", "take the addresses from this context; see spillway context --help")
	f.StringSliceVarP(&d.buffers, "buffer", "b", nil, "gRPC address of the buffer")
	f.StringSliceVarP(&d.ingests, "ingest", "i", nil, "gRPC addresses of instances of ingest")
	f.StringSliceVarP(&d.deliveries, "delivery", "d", nil, "gRPC addresses of instances of deliveries")
	f.StringSliceVar(&d.urls, "http", nil, "URLs of HTTP ports, such as http://localhost:7401")
	f.DurationVar(&d.timeout, "timeout", 10*time.Second, "how long to wait for each answer")
	f.StringVar(&out, "out", "", "file to write; empty is one of this directory, with the time in its name")
	flags.register(cmd)
	for _, err := range []error{cmd.MarkFlagFilename("config", "yaml", "yml"), cmd.RegisterFlagCompletionFunc("context", contextNames)} {
		if err != nil {
			panic(err)
		}
	}
	return cmd
}

// doctor collects an archive.
type doctor struct {
	buffers, ingests, deliveries []string
	urls                         []string
	timeout                      time.Duration
	shown                        config.Security
	cfg                          *config.Config // nil: none was named
	client                       *security.Security

	archive *tar.Writer
	errs    []string // what did not answer
	answers int
}

// find adds the services of a file or a context, where none of a kind is named.
func (d *doctor) find(file, contextName string) error {
	named := len(d.buffers)+len(d.ingests)+len(d.deliveries)+len(d.urls) > 0
	use := func(into *[]string, addresses ...string) {
		if len(*into) == 0 {
			*into = slices.Compact(slices.Sorted(slices.Values(slices.DeleteFunc(addresses, func(a string) bool { return a == "" }))))
		}
	}
	if file != "" {
		cfg, err := loadConfig(file)
		if err != nil {
			return err
		}
		d.cfg, d.shown = cfg, cfg.Security
		scheme := "http://"
		if cfg.Security.TLS != nil {
			scheme = "https://"
		}
		var urls, deliveries []string
		use(&d.buffers, cfg.Buffers...)
		if len(cfg.Buffer.Queues) > 0 {
			urls = append(urls, scheme+reachable(cfg.Buffer.HTTP))
		}
		if len(cfg.Ingest.Sources) > 0 {
			use(&d.ingests, reachable(cfg.Ingest.Listen))
			urls = append(urls, scheme+reachable(cfg.Ingest.HTTP))
		}
		for _, x := range cfg.Delivery {
			deliveries = append(deliveries, reachable(x.Listen))
			urls = append(urls, scheme+reachable(x.HTTP))
		}
		use(&d.deliveries, deliveries...)
		use(&d.urls, urls...)
		return nil
	}
	if named && contextName == "" {
		return nil
	}
	name, x, err := findContext(contextName)
	if err != nil {
		return err
	}
	if name == "" {
		return &usageError{errors.New("want the services: --config FILE, --context NAME, or --buffer, --ingest, --delivery and --http")}
	}
	d.shown.Client = x.Client
	use(&d.buffers, x.Buffer)
	use(&d.ingests, x.Ingest)
	use(&d.deliveries, x.Delivery)
	return nil
}

// write makes the archive, which only its user may read.
func (d *doctor) write(cmd *cobra.Command, out string) (err error) {
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil && d.answers == 0 {
			err = errors.Join(err, os.Remove(out))
		}
	}()
	z := gzip.NewWriter(f)
	d.archive = tar.NewWriter(z)
	if err := d.collect(cmd.Context()); err != nil {
		return err
	}
	if err := errors.Join(d.archive.Close(), z.Close()); err != nil {
		return err
	}
	for _, e := range d.errs {
		fmt.Fprintln(cmd.ErrOrStderr(), "not in it:", e)
	}
	if d.answers == 0 {
		return errors.New("no service answered")
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d answers, %d are missing. Look at it before you hand it out.\n", out, d.answers, len(d.errs))
	return err
}

// collect writes all files. It fails only when the archive cannot be written.
func (d *doctor) collect(ctx context.Context) error {
	if err := d.add("build.txt", []byte(buildText())); err != nil {
		return err
	}
	if d.cfg != nil {
		b, err := d.cfg.Effective()
		if err == nil {
			err = d.add("config.yaml", b)
		}
		if err != nil {
			return err
		}
	}
	for _, kind := range []struct {
		name      string
		addresses []string
	}{{"buffer", d.buffers}, {"ingest", d.ingests}, {"delivery", d.deliveries}} {
		for _, address := range kind.addresses {
			if err := d.service(ctx, kind.name, address); err != nil {
				return err
			}
		}
	}
	for _, url := range d.urls {
		for _, page := range []string{"metrics", "readyz", "debug/goroutines"} {
			if err := d.page(ctx, strings.TrimSuffix(url, "/"), page); err != nil {
				return err
			}
		}
	}
	return d.add("errors.txt", []byte(strings.Join(append(d.errs, ""), "\n")))
}

// buildText says what this program is.
func buildText() string {
	text := versionText() + "\ncollected at " + time.Now().UTC().Format(time.RFC3339) + " on " + runtime.GOOS + "\n\n"
	if info, ok := debug.ReadBuildInfo(); ok {
		text += info.String()
	}
	return text
}

func (d *doctor) add(name string, data []byte) error {
	if len(data) > partBytes {
		d.errs = append(d.errs, fmt.Sprintf("%s: all of it; it was cut at %d bytes", name, partBytes))
		data = data[:partBytes]
	}
	if err := d.archive.WriteHeader(&tar.Header{Name: path.Join("spillway-doctor", name), Mode: 0o600, Size: int64(len(data)), ModTime: time.Now().Truncate(time.Second)}); err != nil {
		return err
	}
	_, err := d.archive.Write(data)
	return err
}

// missing notes what did not answer.
func (d *doctor) missing(what string, err error) {
	d.errs = append(d.errs, what+": "+oneLine(err.Error()))
}

// fileName is an address or a URL as the name of a directory.
func fileName(address string) string {
	_, after, isURL := strings.Cut(address, "://")
	if isURL {
		address = after
	}
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(`:/\`+string(filepath.Separator), c) {
			return '-'
		}
		return c
	}, address)
}

// page adds what an HTTP port answers.
func (d *doctor) page(ctx context.Context, url, page string) error {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/"+page, nil)
	if err != nil {
		d.missing(url, err)
		return nil
	}
	response, err := d.client.HTTPClient().Do(request)
	if err != nil {
		d.missing(url+"/"+page, explainHTTP(err, d.timeout))
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, partBytes+1))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		d.missing(url+"/"+page, err)
		return nil
	}
	if response.StatusCode != http.StatusOK && page != "readyz" {
		d.missing(url+"/"+page, errors.New(response.Status))
		return nil
	}
	d.answers++
	return d.add(path.Join(fileName(url), path.Base(page)+".txt"), body)
}

// service adds the answers of an admin API.
func (d *doctor) service(ctx context.Context, kind, address string) error {
	conn, err := d.client.Dial(address)
	if err != nil {
		d.missing(address, err)
		return nil
	}
	defer conn.Close() // nothing is under way any more
	a := &asking{conn: conn, timeout: d.timeout, names: map[string][]string{"": {""}}}
	for _, call := range collected[kind] {
		for _, name := range a.names[call.of] {
			answer, err := a.ask(ctx, call, name)
			what := path.Join(kind+"-"+fileName(address), call.method, fileName(name))
			if len(answer) > 0 {
				d.answers++
				if err := d.add(what+".json", answer); err != nil {
					return err
				}
			}
			if err != nil && status.Code(err) != codes.Unimplemented { // a delivery to Kafka has no files
				d.missing(what, rpc.Explain(err, kind, address))
			}
		}
	}
	return nil
}
