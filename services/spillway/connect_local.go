package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/flume"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/security"
)

// ports tries to listen on the addresses of a service. One that is in use by a running service of
// Spillway is fine.
func (x *connector) ports(p *probes, grpcAddress, httpAddress string) {
	inUse := false
	for _, port := range []struct{ key, address string }{{"http", httpAddress}, {"listen", grpcAddress}} {
		p.try(port.key+" "+port.address, "end what listens there, or choose another port; if this is not the machine of the service, see --part", func(ctx context.Context) (string, error) {
			lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", port.address)
			switch {
			case err == nil:
				return "free", lis.Close()
			case errors.Is(err, syscall.EADDRINUSE) && (inUse || x.alive(ctx, httpAddress)):
				inUse = true
				return "in use by a running service of Spillway", nil
			}
			return "", err
		})
	}
}

// alive says whether a service of Spillway answers on an HTTP port of this machine.
func (x *connector) alive(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, x.timeout/2) // that the port is in use is known already
	defer cancel()
	client, err := security.NewClient(&x.cfg.Security, x.log)
	if err != nil {
		return false
	}
	scheme := "http"
	if x.cfg.Security.TLS != nil {
		scheme = "https"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+reachable(address)+"/healthz", nil)
	if err != nil {
		return false
	}
	response, err := client.HTTPClient().Do(request)
	if err != nil {
		return false
	}
	return response.StatusCode == http.StatusOK && response.Body.Close() == nil
}

// buffers resolves the addresses of the buffer. Nothing needs to listen there yet.
func (x *connector) buffers(p *probes) {
	for _, address := range x.cfg.Buffers {
		p.try("buffer "+address, "correct buffers, or the name server", func(ctx context.Context) (string, error) {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return "", err
			}
			if _, err = (&net.Resolver{}).LookupHost(ctx, host); err != nil {
				return "", err
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err != nil {
				return "resolves; nothing answers there yet", nil
			}
			return "answers", conn.Close()
		})
	}
}

// dataDir tries the buffer's directory: rights, and room for what the queues may take.
func (x *connector) dataDir(p *probes) {
	dir := x.cfg.Buffer.DataDir
	if dir == "" {
		return // all queues are kept in Kafka
	}
	there := dir // or what it will be made in
	if !p.try("data_dir "+dir, "give the service's user a directory of its own, as in: install -d -m 0700 -o spillway "+dir, func(context.Context) (string, error) {
		for {
			info, err := os.Stat(there)
			if err == nil && !info.IsDir() {
				return "", fmt.Errorf("%s is no directory", there)
			}
			if err == nil {
				break
			}
			if !errors.Is(err, fs.ErrNotExist) || there == filepath.Dir(there) {
				return "", err
			}
			there = filepath.Dir(there)
		}
		began := time.Now()
		if err := writeAndRemove(there); err != nil {
			return "", err
		}
		took := short(time.Since(began))
		if there != dir {
			return fmt.Sprintf("can be made in %s; a write with fsync takes %s", there, took), nil
		}
		return fmt.Sprintf("can be written to; a write with fsync takes %s", took), nil
	}) {
		return
	}
	p.try("disk space", "make room, or lower disk.bytes of the queues: at a full disk ingest waits", func(context.Context) (string, error) {
		var s syscall.Statfs_t
		if err := syscall.Statfs(there, &s); err != nil {
			return "", err
		}
		used, err := bytesBelow(dir)
		if err != nil {
			return "", err
		}
		var wanted int64
		for _, q := range x.cfg.Buffer.Queues {
			if q.Store.Kafka == nil {
				wanted += int64(q.Disk.Bytes)
			}
		}
		free := int64(s.Bavail) * int64(s.Bsize)
		detail := fmt.Sprintf("%s free, %s used; the queues may take %s", bytesOf(free), bytesOf(used), bytesOf(wanted))
		if free+used < wanted {
			return "", doubt{errors.New(detail)}
		}
		return detail, nil
	})
}

func writeAndRemove(dir string) error {
	f, err := os.CreateTemp(dir, ".spillway-check-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString("spillway check\n")
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// bytesBelow adds up the files in a directory, which may not exist.
func bytesBelow(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a running buffer removed it
		}
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// files tries what a delivery to files does: login, the NameNode, and a file in a directory of its
// own, beside where the records go.
func (x *connector) files(p *probes, d *config.Delivery) {
	h := d.HDFS
	dir, local := strings.CutPrefix(h.URL, "file://")
	_, before := os.Stat(dir)
	var fsys filesink.FS
	if !p.try("settings "+h.URL, "correct url, conf_dir, user or kerberos of the delivery, or the file that is named", func(context.Context) (_ string, err error) {
		fsys, err = newFS(h, x.log)
		return "can be used", err
	}) {
		return
	}
	defer func() {
		_ = fsys.Close() // it has said what there was to say
		if local && errors.Is(before, fs.ErrNotExist) {
			_ = os.Remove(dir) // it was made for the probe
		}
	}()
	login := "check that the NameNode runs and is out of safe mode, and that url is its RPC address (fs.defaultFS)"
	if h.Kerberos != nil {
		login += ", that principal, keytab and krb5_conf fit, that the KDC answers, and that the clocks are equal"
	}
	if p.try("file system", login, func(ctx context.Context) (string, error) { return "answers", fsys.Probe(ctx) }) {
		p.try("probe directory", "let the delivery's user write where hdfs.path begins; HDFS needs enough living DataNodes that this machine reaches by the addresses they register with",
			func(ctx context.Context) (string, error) { return probeDirectory(ctx, fsys, fixedDir(h.Path)) })
	}
	x.routes(p, d, func(ps *placers) (placeFunc, error) { return ps.placer(d) })
}

// fixedDir is the directory that a template's paths have in common.
func fixedDir(template string) string {
	fixed, _, escaped := strings.Cut(template, "%")
	if escaped {
		return path.Dir(path.Clean("/" + fixed + "x"))
	}
	return path.Clean("/" + fixed)
}

// probeDirectory makes a file in a directory of its own in dir, and removes all that it made.
func probeDirectory(ctx context.Context, fsys filesink.FS, dir string) (detail string, err error) {
	var made []string // directories, deepest first
	for at := dir; at != "/"; at = path.Dir(at) {
		if _, err := fsys.Size(ctx, at); !errors.Is(err, filesink.ErrNotExist) {
			break
		}
		made = append(made, at)
	}
	probe := path.Join(dir, ".spillway-check-"+rand.Text())
	made = append([]string{probe}, made...)
	name, final := path.Join(probe, "in-use"), path.Join(probe, "final")
	began := time.Now()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		left := errors.Join(fsys.Remove(ctx, name), fsys.Remove(ctx, final))
		for i, at := range made {
			if err := fsys.Remove(ctx, at); i == 0 {
				left = errors.Join(left, err) // others may use those above by now
			}
		}
		if left != nil && err == nil {
			err = fmt.Errorf("%s is left: %w", probe, left)
		}
	}()
	f, err := fsys.Create(ctx, name, func() {})
	if err != nil {
		return "", err
	}
	defer f.Abandon()
	if err := f.Commit(ctx, []byte("spillway check\n")); err != nil {
		return "", err
	}
	if err := f.Close(ctx); err != nil {
		return "", err
	}
	if err := fsys.Rename(ctx, name, final); err != nil {
		return "", err
	}
	return fmt.Sprintf("a file was written, renamed and removed in %s, in %s", dir, short(time.Since(began))), nil
}

// routes says where samples go: those of --samples, or one of each topic that is read for the
// delivery. It returns the places by topic.
func (x *connector) routes(p *probes, d *config.Delivery, placer func(*placers) (placeFunc, error)) map[string]string {
	routes := make(map[string]string)
	hostname := func(string) (string, error) { return os.Hostname() }
	places := &placers{cfg: x.cfg, now: time.Now(), host: hostname}
	samples := x.samplesOf(places, d)
	queue, sub, _ := strings.Cut(d.Subscription, "/")
	if q := x.cfg.Buffer.Queues[queue]; len(samples) == 0 || q == nil || q.Subscriptions[sub] == nil {
		return routes // another file, or a call, makes the subscription
	}
	place, err := placer(places)
	const most = 10
	for i, s := range samples {
		shown := i < most || len(x.samples) > 0
		if !shown && d.Kafka == nil {
			continue
		}
		to, delivered := "", false
		sampleErr := err
		if err == nil {
			to, delivered, sampleErr = place(&s)
		}
		if delivered && sampleErr == nil {
			routes[s.Topic] = to
		}
		if !shown {
			continue
		}
		p.try("path of "+s.Topic, "correct path or topic of the delivery, or its transforms; --samples tries records with other headers", func(context.Context) (string, error) {
			switch {
			case sampleErr != nil && len(x.samples) == 0:
				return "", doubt{sampleErr} // the sample has no headers
			case sampleErr != nil:
				return "", sampleErr
			case !delivered:
				return "is left out", nil
			}
			return to, nil
		})
	}
	return routes
}

// samplesOf are the samples of topics that a delivery gets.
func (x *connector) samplesOf(places *placers, d *config.Delivery) (samples []flume.Sample) {
	for _, s := range x.samples {
		if places.gets(d, s.Topic) {
			samples = append(samples, s)
		}
	}
	if len(x.samples) > 0 {
		return samples
	}
	topics := make(map[string]bool)
	for name, s := range x.cfg.Ingest.Sources {
		for _, topic := range slices.Concat(x.topics[name], s.Topics) {
			if !strings.HasPrefix(topic, config.TopicPattern) && places.gets(d, topic) {
				topics[topic] = true
			}
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		samples = append(samples, flume.Sample{Topic: topic, Timestamp: places.now.UnixMilli(), Value: "sample"})
	}
	return samples
}
