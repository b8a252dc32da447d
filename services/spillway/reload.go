package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
)

// reloadTimeout bounds how long a buffer may take to make changes durable.
const reloadTimeout = 30 * time.Second

// reloader reads the configuration file of this process again: for SIGHUP, and for who asks on
// one of its ports.
type reloader struct {
	spillwayv1.UnimplementedProcessAdminServiceServer
	path  string
	parts []string // what this process uses of the file, beside security
	log   *slog.Logger

	mu      sync.Mutex
	inForce *config.Config
	guards  []*security.Security
	buffer  *buffer.Service // nil: it runs in another process
}

// newReloader is for processes of a file. Parts are keys at its top, or below delivery.
func newReloader(cfg *config.Config, path string, log *slog.Logger, parts ...string) *reloader {
	return &reloader{path: path, parts: append(parts, "security"), log: log, inForce: cfg}
}

// add has a process reloaded with the others. It is to be called before serve.
func (r *reloader) add(p *process) {
	r.guards = append(r.guards, p.guard)
	if b, ok := p.service.(*buffer.Service); ok {
		r.buffer = b
	}
	spillwayv1.RegisterProcessAdminServiceServer(p.rpc.GRPC, r)
}

// ReloadConfiguration implements ProcessAdminService.
func (r *reloader) ReloadConfiguration(ctx context.Context, request *spillwayv1.ReloadConfigurationRequest) (*spillwayv1.ReloadConfigurationResponse, error) {
	applied, restart, err := r.reload(ctx, request.ValidateOnly)
	if err != nil {
		return nil, rpc.Error(codes.FailedPrecondition, "NOT_RELOADED", 0, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &spillwayv1.ReloadConfigurationResponse{File: r.path, Applied: applied, NeedsRestart: restart}, nil
}

// hangUp is reload for SIGHUP.
func (r *reloader) hangUp(ctx context.Context) {
	if _, _, err := r.reload(ctx, false); err != nil {
		r.log.Error("the configuration was not reloaded; all stays as it was", "file", r.path, "error", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// reload puts into force what can change, and returns its keys, and those that need a restart.
// After an error before anything was put into force, nothing has changed.
func (r *reloader) reload(ctx context.Context, dry bool) (applied, restart []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, err := config.Load(r.path)
	if err != nil {
		return nil, nil, err
	}
	merged := mergeReloadable(r.inForce, next)
	// Whether anybody needs an identity is decided at the start.
	if merged.Security.Authenticates() != r.inForce.Security.Authenticates() {
		merged.Security = r.inForce.Security
	}
	applied, restart = r.ours(config.Changed(r.inForce, merged)), r.ours(config.Changed(merged, next))
	var apply []func()
	for _, guard := range r.guards {
		put, err := guard.CheckReload(&merged.Security)
		if err != nil {
			return nil, nil, err
		}
		apply = append(apply, put)
	}
	if dry {
		return applied, restart, nil
	}
	if r.buffer != nil {
		ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
		defer cancel()
		if err := r.buffer.Configure(ctx, merged.Buffer); err != nil {
			return nil, nil, err
		}
	}
	for _, put := range apply {
		put()
	}
	r.inForce = merged
	r.log.Info("the configuration was reloaded", "file", r.path, "applied", applied, "needs_restart", restart)
	for _, w := range next.Warnings() {
		if slices.ContainsFunc(r.parts, func(part string) bool { return strings.HasPrefix(w.Message, part+".") }) {
			r.log.Warn("configuration: " + w.String())
		}
	}
	return applied, restart, nil
}

// ours leaves out keys that this process does not use.
func (r *reloader) ours(keys []string) []string {
	return slices.DeleteFunc(keys, func(key string) bool {
		return !slices.ContainsFunc(r.parts, func(part string) bool { return key == part || strings.HasPrefix(key, part+".") })
	})
}

// mergeReloadable returns a configuration that has of next what can change while a process runs,
// and all else of now.
func mergeReloadable(now, next *config.Config) *config.Config {
	merged := *now
	merged.Security.Tokens, merged.Security.OIDC = next.Security.Tokens, next.Security.OIDC
	merged.Security.Identities, merged.Security.Limits = next.Security.Identities, next.Security.Limits
	merged.Buffer.Queues = maps.Clone(now.Buffer.Queues)
	for name, q := range now.Buffer.Queues {
		with := next.Buffer.Queues[name]
		if with == nil {
			continue
		}
		changed := *q
		if q.Store.Kafka != nil {
			if otherHeaders(q, with) { // which need a restart, and go with what has the same revision
				continue
			}
			changed.Revision = with.Revision
		}
		changed.Disk, changed.Subscriptions = with.Disk, maps.Clone(q.Subscriptions)
		for sub, c := range q.Subscriptions {
			if s := with.Subscriptions[sub]; s != nil {
				x := *c
				x.Topics, x.OnFull, x.Limit, x.Required = s.Topics, s.OnFull, s.Limit, s.Required
				changed.Subscriptions[sub] = &x
			}
		}
		merged.Buffer.Queues[name] = &changed
	}
	return &merged
}

// otherHeaders says whether a subscription has other conditions of headers.
func otherHeaders(now, next *config.Queue) bool {
	for name, s := range now.Subscriptions {
		if n := next.Subscriptions[name]; n != nil && !reflect.DeepEqual(s.Headers, n.Headers) {
			return true
		}
	}
	return false
}

// reloaded is one line for people.
func reloaded(r *spillwayv1.ReloadConfigurationResponse, dry bool) string {
	var said []string
	if len(r.Applied) > 0 {
		verb := "in force: "
		if dry {
			verb = "would be in force: "
		}
		said = append(said, verb+strings.Join(r.Applied, ", "))
	}
	if len(r.NeedsRestart) > 0 {
		said = append(said, "needs a restart: "+strings.Join(r.NeedsRestart, ", "))
	}
	if len(said) == 0 {
		said = append(said, "no key has changed; certificates and tokens were read again")
	}
	return fmt.Sprintf("%s: %s", r.File, strings.Join(said, "; "))
}
