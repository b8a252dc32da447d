// Package telemetry is what a service shows of itself to operators: its log, its metrics and its
// health.
package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spillwayio/spillway/services/internal/listen"
)

const (
	requestTimeout  = 10 * time.Second
	shutdownTimeout = 5 * time.Second
	maxHeaderBytes  = 16 << 10
	// maxConnections bounds those that are open; the oldest one makes room.
	maxConnections = 256
	// maxScrapes bounds the answers with metrics that are made, and read by their callers, at a
	// time: with thousands of partitions each takes tens of megabytes. Others wait for
	// scrapePatience.
	maxScrapes     = 4
	scrapePatience = 8 * time.Second
)

// HTTP answers /metrics (Registry, in Prometheus' formats), /metrics/flume (as an agent of Flume,
// in JSON), /debug/goroutines (what the process is at, function by function), /healthz (200 while
// the process runs) and /readyz (200, or 503 with the reason in the body).
type HTTP struct {
	Registry *prometheus.Registry
	// Guard stands before all answers; nil lets everybody in. MayRead says whether a caller may
	// hear why the service is not ready; nil: everybody may. TLS nil is plain text. Set them
	// before Serve.
	Guard   func(http.Handler) http.Handler
	MayRead func(context.Context) bool
	TLS     *tls.Config
	// Pages answers what none of the above does, and gets the whole path; nil: nothing does.
	Pages http.Handler

	profiling sync.Mutex // held while goroutines are listed, which stops the process for a moment

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

// SetReady sets what /readyz answers; the reason is what the service waits for when it is not
// ready. Safe for concurrent use.
func (h *HTTP) SetReady(ready bool, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.reason = ready, reason
}

// Serve answers requests on lis, which it closes, until ctx ends, and then finishes those that run
// within five seconds. It returns nil when ctx was the reason.
func (h *HTTP) Serve(ctx context.Context, lis net.Listener) error {
	mux := http.NewServeMux()
	few := atMost(maxScrapes)
	mux.Handle("GET /metrics", few(promhttp.HandlerFor(h.Registry, promhttp.HandlerOpts{Registry: h.Registry})))
	mux.Handle("GET /metrics/flume", few(http.HandlerFunc(h.flume)))
	mux.HandleFunc("GET /debug/goroutines", h.goroutines)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", h.readyz)
	if h.Pages != nil {
		mux.Handle("/", h.Pages)
	}
	var handler http.Handler = mux
	if h.Guard != nil {
		handler = h.Guard(mux)
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: requestTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		TLSConfig:         h.TLS,
		ErrorLog:          log.New(io.Discard, "", 0), // of handshakes that strangers break off
	}

	lis = listen.Limit(lis, maxConnections)
	served := make(chan error, 1)
	go func() {
		if h.TLS != nil {
			served <- server.ServeTLS(lis, "", "")
			return
		}
		served <- server.Serve(lis)
	}()
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

// goroutines lists the stacks of all goroutines, equal ones as one. They have no values.
func (h *HTTP) goroutines(w http.ResponseWriter, _ *http.Request) {
	h.profiling.Lock()
	defer h.profiling.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = pprof.Lookup("goroutine").WriteTo(w, 1) // the client may be gone
}

// atMost returns a wrapper of handlers, of which so many run at a time.
func atMost(n int) func(http.Handler) http.Handler {
	slots := make(chan struct{}, n)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			timer := time.NewTimer(scrapePatience)
			defer timer.Stop()
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				next.ServeHTTP(w, r)
			case <-timer.C:
				answer(w, http.StatusServiceUnavailable, fmt.Sprintf("%d others read metrics; try again later", n))
			case <-r.Context().Done():
			}
		})
	}
}

func (h *HTTP) readyz(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	ready, reason := h.ready, h.reason
	h.mu.Unlock()
	if ready {
		answer(w, http.StatusOK, "ready")
		return
	}
	if h.MayRead != nil && !h.MayRead(r.Context()) {
		reason = "not ready" // the reason has names, and addresses
	}
	answer(w, http.StatusServiceUnavailable, reason)
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n") // the client may be gone
}
