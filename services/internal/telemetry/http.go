// Package telemetry is what a service shows of itself to operators: its log, its metrics and its health.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	requestTimeout  = 10 * time.Second
	shutdownTimeout = 5 * time.Second
)

// HTTP answers /metrics (Registry, in Prometheus' formats), /healthz (200 while the process runs) and
// /readyz (200, or 503 with the reason in the body).
type HTTP struct {
	Registry *prometheus.Registry

	mu     sync.Mutex
	ready  bool
	reason string
}

// NewHTTP has the collectors of the Go runtime and the process registered, and is not ready.
func NewHTTP() *HTTP {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &HTTP{Registry: registry, reason: "starting"}
}

// SetReady sets what /readyz answers; the reason is what the service waits for when it is not ready.
// Safe for concurrent use.
func (h *HTTP) SetReady(ready bool, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.reason = ready, reason
}

// Serve answers requests on lis, which it closes, until ctx ends, and then finishes those that run
// within five seconds. It returns nil when ctx was the reason.
func (h *HTTP) Serve(ctx context.Context, lis net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.Registry, promhttp.HandlerOpts{Registry: h.Registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", h.readyz)
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		IdleTimeout:       2 * time.Minute,
	}

	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve HTTP on %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(deadline)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-served
	if err != nil {
		return fmt.Errorf("shut down HTTP on %s: %w", lis.Addr(), err)
	}
	return nil
}

func (h *HTTP) readyz(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	ready, reason := h.ready, h.reason
	h.mu.Unlock()
	if ready {
		answer(w, http.StatusOK, "ready")
		return
	}
	answer(w, http.StatusServiceUnavailable, reason)
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n") // the client may be gone
}
