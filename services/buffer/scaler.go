package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/spillwayio/spillway/gen/externalscaler"
	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// scalerMetric is the metric that deliveries are scaled by: the age of the backlog in seconds.
	scalerMetric = "spillway-backlog-age-seconds"
	// defaultTargetAge is the age in seconds that one instance may have.
	defaultTargetAge = 60
	// scalerPoll is how often a stream looks for a change.
	scalerPoll = 2 * time.Second
)

// scaler answers KEDA's external triggers. An instance is wanted for each targetAgeSeconds of the
// backlog's age, and at least one as long as there is something left to do: records that are
// pending, and files in use, which nobody would make final without an instance.
//
// While the queue is not open, at least one is wanted, and the metric is an error: KEDA then
// leaves the number of instances as it is.
type scaler struct {
	externalscaler.UnimplementedExternalScalerServer
	s *Service
}

// scaled is what a trigger is about.
type scaled struct {
	subscription string
	targetAge    float64
}

func parseScaled(r *externalscaler.ScaledObjectRef) (scaled, error) {
	all := r.GetScalerMetadata()
	s := scaled{all["subscription"], defaultTargetAge}
	if s.subscription == "" {
		return s, fmt.Errorf("%w trigger of %.200q: its metadata has no subscription, as in subscription: logs/hdfs", queue.ErrInvalid, r.GetName())
	}
	if text := all["targetAgeSeconds"]; text != "" {
		age, err := strconv.ParseFloat(text, 64)
		if err != nil || !(age >= 1 && age <= math.MaxInt32) {
			return s, fmt.Errorf("%w trigger of %.200q: targetAgeSeconds is %.50q: want a number of seconds, 1 or more", queue.ErrInvalid, r.GetName(), text)
		}
		s.targetAge = age
	}
	return s, nil
}

// isActive says whether at least one instance is wanted.
func (c *scaler) isActive(r *externalscaler.ScaledObjectRef) (bool, error) {
	trigger, err := parseScaled(r)
	if err != nil {
		return false, err
	}
	all, name, err := c.s.subscription(trigger.subscription)
	if errors.Is(err, errRecovering) {
		return true, nil // nobody knows, and a delivery at zero would be started late
	}
	if err != nil {
		return false, err
	}
	all, views, err := with(all, name)
	for i, v := range views {
		if v.PendingRecords > 0 || v.Deferred > 0 || v.Leased > 0 {
			return true, nil
		}
		for _, s := range all[i].Sessions() {
			if s.Subscription == name && s.StateEntries > 0 {
				return true, nil
			}
		}
	}
	return false, err
}

// IsActive implements ExternalScaler.
func (c *scaler) IsActive(_ context.Context, r *externalscaler.ScaledObjectRef) (*externalscaler.IsActiveResponse, error) {
	active, err := c.isActive(r)
	if err != nil {
		return nil, toStatus(err)
	}
	return &externalscaler.IsActiveResponse{Result: active}, nil
}

// StreamIsActive implements ExternalScaler.
func (c *scaler) StreamIsActive(r *externalscaler.ScaledObjectRef, stream grpc.ServerStreamingServer[externalscaler.IsActiveResponse]) error {
	ticker := time.NewTicker(scalerPoll)
	defer ticker.Stop()
	for told := (*bool)(nil); ; {
		active, err := c.isActive(r)
		if err != nil {
			return toStatus(err)
		}
		if told == nil || *told != active {
			if err := stream.Send(&externalscaler.IsActiveResponse{Result: active}); err != nil {
				return err
			}
			told = &active
		}
		select {
		case <-ticker.C:
		case <-stream.Context().Done():
			return nil
		case <-c.s.stopping:
			return nil
		}
	}
}

// GetMetricSpec implements ExternalScaler.
func (c *scaler) GetMetricSpec(_ context.Context, r *externalscaler.ScaledObjectRef) (*externalscaler.GetMetricSpecResponse, error) {
	trigger, err := parseScaled(r)
	if err != nil {
		return nil, toStatus(err)
	}
	return &externalscaler.GetMetricSpecResponse{MetricSpecs: []*externalscaler.MetricSpec{
		{MetricName: scalerMetric, TargetSize: int64(math.Ceil(trigger.targetAge)), TargetSizeFloat: trigger.targetAge}}}, nil
}

// GetMetrics implements ExternalScaler.
func (c *scaler) GetMetrics(_ context.Context, r *externalscaler.GetMetricsRequest) (*externalscaler.GetMetricsResponse, error) {
	trigger, err := parseScaled(r.GetScaledObjectRef())
	if err != nil {
		return nil, toStatus(err)
	}
	if r.MetricName != scalerMetric {
		return nil, toStatus(fmt.Errorf("%w metric %.200q: there is %s", queue.ErrInvalid, r.MetricName, scalerMetric))
	}
	all, name, err := c.s.subscription(trigger.subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	all, views, err := with(all, name)
	if err != nil {
		return nil, toStatus(err)
	}
	age := 0.0
	for i, v := range views {
		if !v.Paused { // more instances would be given nothing
			age = max(age, c.s.forecasts.age(all[i].trendOf(name)).Seconds())
		}
	}
	return &externalscaler.GetMetricsResponse{MetricValues: []*externalscaler.MetricValue{
		{MetricName: scalerMetric, MetricValue: int64(age), MetricValueFloat: age}}}, nil
}
