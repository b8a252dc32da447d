// Package console is a web page that shows what flows through a buffer: the picture that `spillway
// top` prints, plots of the last hour, and behind each subscription its sessions, open files, what
// was not delivered, and the audit.
//
// It calls the admin API of the buffer in its own process, and asks package security, for each
// call, what the caller of the HTTP request may do. Where several buffers divide the queues it
// asks the others, too, as a client that shows what this process shows to others. Run is its only
// goroutine. A look at the buffer is shared by all who ask within a second, and the history is
// bounded.
package console

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
)

//go:embed static
var files embed.FS

const (
	lookTimeout = 10 * time.Second
	callTimeout = 30 * time.Second
	maxBody     = 64 << 10
	// policy lets the page load nothing but its own files, and nobody put it into a frame.
	policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// Console answers requests for the pages. Its methods may be called concurrently.
type Console struct {
	conn    grpc.ClientConnInterface // the buffer of this process
	others  []*grpc.ClientConn       // all buffers, if there are several; one of them may be this process's
	buffers []picture.Buffer
	guard   *security.Security
	version string
	mux     *http.ServeMux
	history *history

	mu   sync.Mutex // held while the buffer is asked
	last *picture.Picture
}

// New returns a console of the buffer behind conn, and of all buffers that divide the queues with
// it, whose connections the console closes when Run ends. All requests must come through guard's
// Handler.
func New(conn grpc.ClientConnInterface, others []*grpc.ClientConn, guard *security.Security, version string) *Console {
	c := &Console{conn: conn, others: others, guard: guard, version: version, mux: http.NewServeMux(), history: newHistory()}
	c.buffers = append(c.buffers, picture.Buffer{Admin: spillwayv1.NewBufferAdminServiceClient(conn)})
	for _, other := range others {
		c.buffers = append(c.buffers, picture.Buffer{Address: rpc.Address(other), Admin: spillwayv1.NewBufferAdminServiceClient(other)})
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // the name is a constant
	}
	c.mux.Handle("GET /console/", http.StripPrefix("/console/", http.FileServerFS(static)))
	c.mux.Handle("GET /{$}", http.RedirectHandler("/console/", http.StatusFound))
	c.mux.HandleFunc("POST /console/api/login", c.login)
	c.mux.Handle("POST /console/api/logout", c.page(c.logout))
	c.mux.Handle("GET /console/api/me", c.page(c.me))
	c.mux.Handle("GET /console/api/picture", c.page(c.picture))
	c.mux.Handle("GET /console/api/history", c.page(c.showHistory))
	c.mux.Handle("POST /console/api/call/{method}", c.page(c.call))
	return c
}

// lookShare is the part of the time that looks for the history may take: those at a buffer with
// many partitions are long, and rarer.
const lookShare = 50

// Run keeps the history until ctx ends.
func (c *Console) Run(ctx context.Context) error {
	defer func() {
		for _, other := range c.others {
			_ = other.Close() // nobody waits for what is under way
		}
	}()
	for {
		began := time.Now()
		if p, err := c.look(ctx); err == nil { // else the buffer stops
			c.history.add(p)
		}
		select {
		case <-time.After(max(sampleEvery, lookShare*time.Since(began))):
		case <-ctx.Done():
			return nil
		}
	}
}

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-cache") // a page of the version before would ask for what is not there
	if strings.HasPrefix(r.URL.Path, "/console/api/") {
		h.Set("Cache-Control", "no-store")
	}
	c.mux.ServeHTTP(w, r)
}

// page is for callers with the role read only. What is posted must come from a page of the
// console.
func (c *Console) page(serve func(w http.ResponseWriter, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !security.MayRead(r.Context()) {
			problem(w, http.StatusForbidden, errors.New("the role read is wanted"))
			return
		}
		if r.Method == http.MethodPost {
			if err := c.guard.CheckPage(r); err != nil {
				problem(w, http.StatusForbidden, err)
				return
			}
		}
		if err := serve(w, r); err != nil {
			problem(w, httpStatus(err), err)
		}
	})
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	var body struct{ Token string }
	err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&body)
	if err == nil {
		err = c.guard.Login(w, r, body.Token)
	}
	if err != nil {
		problem(w, http.StatusUnauthorized, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) error {
	c.guard.Logout(w, r)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// me tells who the caller is, whether the queue or subscription of that name is theirs to operate,
// and what their page must send along.
func (c *Console) me(w http.ResponseWriter, r *http.Request) error {
	return answer(w, map[string]any{"caller": security.Caller(r.Context()).String(), "may_operate": c.guard.MayOperate(r, r.URL.Query().Get("name")),
		"csrf": c.guard.Token(r), "version": c.version})
}

func (c *Console) picture(w http.ResponseWriter, r *http.Request) error {
	p, err := c.look(r.Context())
	if err != nil {
		return err
	}
	return answer(w, p)
}

// look returns a picture that is a second old at most.
func (c *Console) look(ctx context.Context) (*picture.Picture, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last != nil && time.Since(c.last.At) < time.Second {
		return c.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	p, err := picture.LookAll(ctx, c.buffers)
	if err != nil {
		return nil, err
	}
	c.last = p
	return p, nil
}

func (c *Console) showHistory(w http.ResponseWriter, r *http.Request) error {
	return answer(w, c.history.of(r.URL.Query().Get("name")))
}

func answer(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the browser may be gone
	return nil
}

func problem(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, err.Error()+"\n") // the browser may be gone
}
