package ingest

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// admin is the control plane.
type admin struct {
	spillwayv1.UnimplementedIngestAdminServiceServer
	s *Service
}

// ListSources implements IngestAdminService.
func (a *admin) ListSources(_ context.Context, r *spillwayv1.ListSourcesRequest) (*spillwayv1.ListSourcesResponse, error) {
	var all []*spillwayv1.Source
	for _, s := range a.s.sources {
		all = append(all, s.status())
	}
	page, next, err := rpc.Page(all, (*spillwayv1.Source).GetName, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListSourcesResponse{Sources: page, NextPageToken: next}, err
}

// ListPartitions implements IngestAdminService.
func (a *admin) ListPartitions(_ context.Context, r *spillwayv1.ListPartitionsRequest) (*spillwayv1.ListPartitionsResponse, error) {
	sources := a.s.sources
	if r.Source != "" {
		s, err := a.source(r.Source)
		if err != nil {
			return nil, err
		}
		sources = []*source{s}
	}
	var all []*spillwayv1.PartitionStatus
	for _, s := range sources {
		all = append(all, s.partitionStatus()...)
	}
	// Names have no blank, and the number is padded, so that the keys sort as source, topic and
	// number do.
	key := func(p *spillwayv1.PartitionStatus) string {
		return fmt.Sprintf("%s %s %010d", p.Source, p.Topic, p.Partition)
	}
	page, next, err := rpc.Page(all, key, r.PageSize, 1000, r.PageToken)
	return &spillwayv1.ListPartitionsResponse{Partitions: page, NextPageToken: next}, err
}

// PauseSource implements IngestAdminService.
func (a *admin) PauseSource(ctx context.Context, r *spillwayv1.PauseSourceRequest) (*spillwayv1.PauseSourceResponse, error) {
	s, kept, err := a.pause(ctx, r.Name, true)
	return &spillwayv1.PauseSourceResponse{Source: s, Kept: kept}, err
}

// ResumeSource implements IngestAdminService.
func (a *admin) ResumeSource(ctx context.Context, r *spillwayv1.ResumeSourceRequest) (*spillwayv1.ResumeSourceResponse, error) {
	s, kept, err := a.pause(ctx, r.Name, false)
	return &spillwayv1.ResumeSourceResponse{Source: s, Kept: kept}, err
}

func (a *admin) pause(ctx context.Context, name string, paused bool) (*spillwayv1.Source, bool, error) {
	s, err := a.source(name)
	if err != nil {
		return nil, false, err
	}
	kept, err := s.pause(ctx, paused)
	if err != nil {
		return nil, false, err
	}
	return s.status(), kept, nil
}

func (a *admin) source(name string) (*source, error) {
	var names []string
	for _, s := range a.s.sources {
		if s.name == name {
			return s, nil
		}
		names = append(names, s.name)
	}
	return nil, rpc.Error(codes.NotFound, "NO_SUCH_SOURCE", 0, "no source %q; there are: %s", name, strings.Join(names, ", "))
}

// status describes the source now.
func (s *source) status() *spillwayv1.Source {
	state, err := s.state()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &spillwayv1.Source{Name: s.name, Brokers: s.cfg.Brokers, Cluster: s.cluster, Group: s.cfg.Group, Topics: s.cfg.Topics,
		MissingTopics: s.missing, Queue: s.cfg.Queue, Paused: s.gate.closed(), State: state, Partitions: int32(len(s.partitions)),
		Records: s.records.Load(), Bytes: s.bytes.Load(), ForeignClients: s.foreign}
	if err != nil {
		m.LastError = err.Error()
	}
	return m
}

// partitionStatus describes the partitions that are read now.
func (s *source) partitionStatus() []*spillwayv1.PartitionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*spillwayv1.PartitionStatus
	for _, p := range s.partitions {
		m := &spillwayv1.PartitionStatus{Source: s.name, Topic: p.topic, Partition: int32(p.number), Position: max(p.position.Load(), 0),
			SafeOffset: max(p.safe.Load(), 0), CommittedOffset: max(p.committed.Load(), 0), EndOffset: p.end.Load(), FirstOffset: p.first.Load(),
			OldestUnsafeMs: p.unsafeAge.Load(), RetentionMs: p.keeps().After.Milliseconds(),
			StableOffset: p.stable.Load(), HeldBackSinceMs: p.undecided.Load()}
		m.Lag = max(m.EndOffset-m.Position, 0)
		all = append(all, m)
	}
	return all
}
