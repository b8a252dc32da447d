package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/ingest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/console"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
	"github.com/spillwayio/spillway/services/internal/telemetry"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// service is what the three services have in common.
type service interface {
	Register(grpc.ServiceRegistrar)
	Run(ctx context.Context) error
}

// deps are what a service is given of its process.
type deps struct {
	log        *slog.Logger
	registerer prometheus.Registerer
	onReady    func(ready bool, reason string)
	dial       dialFunc // to other processes
	tracer     *tracing.Tracer
}

// dialOr is how to connect to a buffer: that of this process, or another with what the
// configuration says to show to it.
func (d deps) dialOr(local dialFunc) dialFunc {
	if local != nil {
		return local
	}
	return d.dial
}

// process is one service with its two ports.
type process struct {
	service service
	guard   *security.Security
	log     *slog.Logger
	rpc     *rpc.Server
	http    *telemetry.HTTP
	grpcLis net.Listener
	httpLis net.Listener
	local   *localServer     // nil: other services are in other processes
	console *console.Console // nil: it has none
	tracer  *tracing.Tracer  // nil: nobody wants traces

	everReady chan struct{} // closed when it has been ready

	mu        sync.Mutex
	ready     bool
	readyOnce sync.Once
	stopping  bool // it is not ready any more, whatever the service says
}

// localServer is for the services of the same process.
type localServer struct {
	rpc *rpc.Server
	lis *rpc.Local
}

// serveLocally has p serve its own process, too, and returns what connects to it. It is to be
// called before serve.
func (p *process) serveLocally() dialFunc {
	p.local = &localServer{rpc.NewServer(p.log), rpc.NewLocal()}
	p.service.Register(p.local.rpc.GRPC)
	return p.local.lis.Dial
}

// addConsole puts the console on the HTTP port of a buffer. Of several, each shows all.
func (p *process) addConsole(guard *security.Security, buffers []string) {
	direct := rpc.NewDirect(p.log)
	p.service.Register(direct)
	var others []*grpc.ClientConn
	for _, address := range buffers {
		if len(buffers) == 1 {
			break // it is this one
		}
		conn, err := guard.Dial(address)
		if err != nil {
			p.log.Warn("the console does not show a buffer", "address", address, "err", err)
			continue
		}
		others = append(others, conn)
	}
	p.console = console.New(direct, others, guard, version())
	p.http.Pages = p.console
}

// dialFunc connects to the buffer at an address of the configuration.
type dialFunc func(addr string) (*grpc.ClientConn, error)

// listenFunc listens on an address of the configuration.
type listenFunc func(addr string) (net.Listener, error)

func listenTCP(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// newProcess makes the service and listens on both ports, which are the keys listen and http of
// part in the configuration. serve must follow.
func newProcess(cfg *config.Config, log *slog.Logger, listen listenFunc, part, grpcAddr, httpAddr string, build func(deps) (service, error)) (*process, error) {
	guard, err := security.New(&cfg.Security, log)
	if err != nil {
		return nil, err
	}
	p := &process{log: log, guard: guard, rpc: rpc.NewGuardedServer(log, guard.Guard()), http: telemetry.NewHTTP(), everReady: make(chan struct{})}
	p.http.Registry.MustRegister(buildInfo())
	p.http.Guard, p.http.MayRead, p.http.TLS = guard.Handler, security.MayRead, guard.HTTPS()
	if err := guard.Register(p.http.Registry); err != nil {
		return nil, err
	}
	if kind, _, _ := strings.Cut(part, "."); kind != "buffer" { // which looks into no record
		if p.tracer, err = tracing.New(context.Background(), kind, version(), log); err != nil {
			return nil, &usageError{err}
		}
	}
	if p.service, err = build(deps{log: log, registerer: p.http.Registry, onReady: p.onReady, dial: guard.Dial, tracer: p.tracer}); err != nil {
		return nil, err
	}
	p.service.Register(p.rpc.GRPC)
	if part == "buffer" {
		p.addConsole(guard, cfg.Buffers)
	}
	if p.grpcLis, err = listen(grpcAddr); err != nil {
		return nil, fmt.Errorf("%s.listen: %w", part, err)
	}
	if p.httpLis, err = listen(httpAddr); err != nil {
		return nil, errors.Join(fmt.Errorf("%s.http: %w", part, err), p.grpcLis.Close())
	}
	return p, nil
}

// buildInfo is a metric that is always 1; its labels say what runs.
func buildInfo() prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "spillway_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version(), "go": runtime.Version()}})
	info.Set(1)
	return info
}

// traceTimeout bounds how long the end of a process waits for the receiver of its traces.
const traceTimeout = 3 * time.Second

// onReady passes readiness on to both ports, and logs its changes.
func (p *process) onReady(ready bool, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		ready, reason = false, "stopping"
	}
	p.http.SetReady(ready, reason)
	p.rpc.SetServing(ready)
	if p.local != nil {
		p.local.rpc.SetServing(ready)
	}
	switch {
	case ready && !p.ready:
		p.log.Info("ready")
		p.readyOnce.Do(func() { close(p.everReady) })
	case !ready && p.ready && !p.stopping:
		p.log.Info("not ready", "reason", reason)
	}
	p.ready = ready
}

// stops says that the process was told to stop.
func (p *process) stops() {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.onReady(false, "")
	p.log.Info("stopping; a second signal ends it at once")
}

// serve runs the service until ctx ends and it has drained; its ports answer until then.
func (p *process) serve(ctx context.Context) error {
	p.log.Info("starting", "version", version(), "grpc", p.grpcLis.Addr().String(), "http", p.httpLis.Addr().String())
	ports, closePorts := context.WithCancel(context.WithoutCancel(ctx))
	defer closePorts()
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	said := make(chan struct{})
	stopSaying := context.AfterFunc(ctx, func() {
		defer close(said)
		p.stops()
	})

	var g errgroup.Group
	listen := func(serve func(context.Context, net.Listener) error, lis net.Listener) {
		g.Go(func() error {
			defer stop() // without its ports the service ends, too
			return serve(ports, lis)
		})
	}
	listen(p.rpc.Serve, p.grpcLis)
	listen(p.http.Serve, p.httpLis)
	if p.local != nil {
		listen(p.local.rpc.Serve, p.local.lis)
	}
	if p.console != nil {
		g.Go(func() error { return p.console.Run(ports) })
	}
	g.Go(func() error {
		defer closePorts()
		return p.service.Run(runCtx)
	})
	err := g.Wait()
	if !stopSaying() {
		<-said
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceTimeout)
	defer cancel()
	if err := p.tracer.Close(last); err != nil {
		p.log.Warn("the last traces are not exported", "err", err)
	}
	if err == nil {
		p.log.Info("stopped")
	}
	return err
}

func newBufferProcess(cfg *config.Config, log *slog.Logger, listen listenFunc) (*process, error) {
	return newProcess(cfg, log.With("service", "buffer"), listen, "buffer", cfg.Buffer.Listen, cfg.Buffer.HTTP, func(d deps) (service, error) {
		return buffer.New(cfg.Buffer, buffer.Deps{Log: d.log, Registerer: d.registerer, OnReady: d.onReady, Dial: d.dial})
	})
}

func newIngestProcess(cfg *config.Config, log *slog.Logger, listen listenFunc, dial dialFunc) (*process, error) {
	return newProcess(cfg, log.With("service", "ingest"), listen, "ingest", cfg.Ingest.Listen, cfg.Ingest.HTTP, func(d deps) (service, error) {
		return ingest.New(cfg.Ingest, cfg.Buffers, ingest.Deps{Log: d.log, Registerer: d.registerer, OnReady: d.onReady, Dial: d.dialOr(dial), Tracer: d.tracer})
	})
}

func newDeliveryProcess(cfg *config.Config, name string, log *slog.Logger, listen listenFunc, dial dialFunc) (*process, error) {
	d, err := cfg.ForDelivery(name)
	if err != nil {
		return nil, &usageError{err}
	}
	return newProcess(cfg, log.With("service", "delivery", "delivery", name), listen, "delivery."+name, d.Listen, d.HTTP, func(deps deps) (service, error) {
		sink, err := newSink(d, deps.log)
		if err != nil {
			return nil, fmt.Errorf("delivery.%s: %w", name, err)
		}
		letters, err := newLetters(d, deps.log)
		if err != nil {
			return nil, fmt.Errorf("delivery.%s.dead_letter_topic: %w", name, err)
		}
		return delivery.New(name, d, cfg.Buffers, sink, delivery.Deps{Letters: letters, Log: deps.log, Registerer: deps.registerer, OnReady: deps.onReady, Dial: deps.dialOr(dial), Tracer: deps.tracer})
	})
}
