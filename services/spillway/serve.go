package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/ingest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/telemetry"
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
}

// process is one service with its two ports.
type process struct {
	service service
	log     *slog.Logger
	rpc     *rpc.Server
	http    *telemetry.HTTP
	grpcLis net.Listener
	httpLis net.Listener
}

// listenFunc listens on an address of the configuration.
type listenFunc func(addr string) (net.Listener, error)

func listenTCP(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// newProcess makes the service and listens on both ports, which are the keys listen and http of part in
// the configuration. serve must follow.
func newProcess(log *slog.Logger, listen listenFunc, part, grpcAddr, httpAddr string, make func(deps) (service, error)) (*process, error) {
	p := &process{log: log, rpc: rpc.NewServer(log), http: telemetry.NewHTTP()}
	var err error
	if p.service, err = make(deps{log: log, registerer: p.http.Registry, onReady: p.onReady()}); err != nil {
		return nil, err
	}
	p.service.Register(p.rpc.GRPC)
	if p.grpcLis, err = listen(grpcAddr); err != nil {
		return nil, fmt.Errorf("%s.listen: %w", part, err)
	}
	if p.httpLis, err = listen(httpAddr); err != nil {
		return nil, errors.Join(fmt.Errorf("%s.http: %w", part, err), p.grpcLis.Close())
	}
	return p, nil
}

// onReady passes readiness on to both ports, and logs its changes.
func (p *process) onReady() func(bool, string) {
	var mu sync.Mutex
	was := false
	return func(ready bool, reason string) {
		mu.Lock()
		defer mu.Unlock()
		p.http.SetReady(ready, reason)
		p.rpc.SetServing(ready)
		if ready && !was {
			p.log.Info("ready")
		}
		was = ready
	}
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
		p.log.Info("stopping; a second signal ends it at once")
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
	g.Go(func() error {
		defer closePorts()
		return p.service.Run(runCtx)
	})
	err := g.Wait()
	if !stopSaying() {
		<-said
	}
	if err == nil {
		p.log.Info("stopped")
	}
	return err
}

func newBufferProcess(cfg *config.Config, log *slog.Logger, listen listenFunc) (*process, error) {
	return newProcess(log.With("service", "buffer"), listen, "buffer", cfg.Buffer.Listen, cfg.Buffer.HTTP, func(d deps) (service, error) {
		return buffer.New(cfg.Buffer, buffer.Deps{Log: d.log, Registerer: d.registerer, OnReady: d.onReady})
	})
}

func newIngestProcess(cfg *config.Config, log *slog.Logger, listen listenFunc) (*process, error) {
	return newProcess(log.With("service", "ingest"), listen, "ingest", cfg.Ingest.Listen, cfg.Ingest.HTTP, func(d deps) (service, error) {
		return ingest.New(cfg.Ingest, cfg.Buffers, ingest.Deps{Log: d.log, Registerer: d.registerer, OnReady: d.onReady})
	})
}

func newDeliveryProcess(cfg *config.Config, name string, log *slog.Logger, listen listenFunc) (*process, error) {
	d, err := cfg.ForDelivery(name)
	if err != nil {
		return nil, &usageError{err}
	}
	return newProcess(log.With("service", "delivery"), listen, "delivery."+name, d.Listen, d.HTTP, func(deps deps) (service, error) {
		sink, err := newSink(d, deps.log.With("delivery", name))
		if err != nil {
			return nil, fmt.Errorf("delivery.%s: %w", name, err)
		}
		return delivery.New(name, d, cfg.Buffers, sink, delivery.Deps{Log: deps.log, Registerer: deps.registerer, OnReady: deps.onReady})
	})
}
