package delivery

import (
	"cmp"
	"context"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// FileLister is a Sink that writes files.
type FileLister interface {
	// OpenFiles returns the in-use files of this instance; the caller may keep and change them.
	OpenFiles() []*spillwayv1.OpenFile
}

// FileRoller is a Sink whose files can be made final on demand.
type FileRoller interface {
	// RollFiles makes the in-use files final whose final path begins with prefix, and returns
	// their final paths when that is durable. On an error the paths are those that became final
	// before it.
	RollFiles(ctx context.Context, prefix string) ([]string, error)
}

// admin is the control plane.
type admin struct {
	spillwayv1.UnimplementedDeliveryAdminServiceServer
	s *Service
}

// GetDelivery implements DeliveryAdminService.
func (a *admin) GetDelivery(context.Context, *spillwayv1.GetDeliveryRequest) (*spillwayv1.GetDeliveryResponse, error) {
	return &spillwayv1.GetDeliveryResponse{Delivery: a.s.status()}, nil
}

// PauseDelivery implements DeliveryAdminService.
func (a *admin) PauseDelivery(ctx context.Context, _ *spillwayv1.PauseDeliveryRequest) (*spillwayv1.PauseDeliveryResponse, error) {
	kept, err := a.s.pause(ctx, true)
	if err != nil {
		return nil, err
	}
	return &spillwayv1.PauseDeliveryResponse{Delivery: a.s.status(), Kept: kept}, nil
}

// ResumeDelivery implements DeliveryAdminService.
func (a *admin) ResumeDelivery(ctx context.Context, _ *spillwayv1.ResumeDeliveryRequest) (*spillwayv1.ResumeDeliveryResponse, error) {
	kept, err := a.s.pause(ctx, false)
	if err != nil {
		return nil, err
	}
	return &spillwayv1.ResumeDeliveryResponse{Delivery: a.s.status(), Kept: kept}, nil
}

// ListOpenFiles implements DeliveryAdminService.
func (a *admin) ListOpenFiles(_ context.Context, r *spillwayv1.ListOpenFilesRequest) (*spillwayv1.ListOpenFilesResponse, error) {
	l, ok := a.s.sink.(FileLister)
	if !ok {
		return nil, a.noFiles()
	}
	page, next, err := rpc.Page(l.OpenFiles(), (*spillwayv1.OpenFile).GetInUsePath, r.PageSize, 100, r.PageToken)
	if err != nil {
		return nil, err
	}
	return &spillwayv1.ListOpenFilesResponse{Files: page, NextPageToken: next}, nil
}

// RollFiles implements DeliveryAdminService.
func (a *admin) RollFiles(ctx context.Context, r *spillwayv1.RollFilesRequest) (*spillwayv1.RollFilesResponse, error) {
	roller, ok := a.s.sink.(FileRoller)
	if !ok {
		return nil, a.noFiles()
	}
	paths, err := roller.RollFiles(ctx, r.FinalPathPrefix)
	if err != nil {
		return nil, rpc.Error(codes.Unavailable, "ROLL_FAILED", 0, "roll files (%d became final): %v", len(paths), err)
	}
	return &spillwayv1.RollFilesResponse{FinalPaths: paths}, nil
}

func (a *admin) noFiles() error {
	return rpc.Error(codes.Unimplemented, "NO_FILES", 0, "delivery %q writes to %s, not to files", a.s.name, a.s.kind)
}

// status describes the service now.
func (s *Service) status() *spillwayv1.Delivery {
	s.mu.Lock()
	paused, draining, links := s.pausedLocked(), s.draining, s.links
	s.mu.Unlock()
	sessions := s.sessions()

	d := &spillwayv1.Delivery{
		Name: s.name, Kind: s.kind, Subscription: s.cfg.subscription, Consumer: s.cfg.consumer, Paused: paused,
		Records: s.counters.records.Load(), Bytes: s.counters.bytes.Load(), DeadLetters: s.counters.deadLetters.Load(),
	}
	for i, session := range sessions {
		if d.Leases += int64(session.Held()); i == 0 {
			d.SessionId = session.id
		}
	}
	if l, ok := s.sink.(FileLister); ok {
		d.OpenFiles = int32(len(l.OpenFiles()))
	}
	var err error
	for _, l := range links {
		if err == nil {
			err = cmp.Or(l.trouble.Err(), l.failure())
		}
	}
	switch {
	case draining:
		d.State = "draining"
	case err != nil:
		d.State = "retrying"
	case len(sessions) == len(links):
		d.State = "running"
	default:
		d.State = "connecting"
	}
	if err != nil {
		d.LastError = err.Error()
	}
	return d
}
