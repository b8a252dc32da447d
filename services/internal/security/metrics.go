package security

import (
	"fmt"
	"math"

	"github.com/prometheus/client_golang/prometheus"
)

// Register adds the metrics: what was refused, and when the certificate expires.
func (s *Security) Register(r prometheus.Registerer) error {
	all := []prometheus.Collector{prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "spillway_security_refusals_total",
		Help: "Calls and requests that were not let in."}, func() float64 { return float64(s.audit.refusals.Load()) })}
	all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "spillway_security_certificate_expires_seconds",
		Help: "When the certificate of this process's ports expires, in seconds since 1970; +Inf without one."}, s.expires))
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (s *Security) expires() float64 {
	if s.server == nil {
		return math.Inf(1)
	}
	return float64(s.server.Expires().Unix())
}
