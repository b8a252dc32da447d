package telemetry

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestFlumeMonitoring answers with Flume's components and counters, whose values are strings.
func TestFlumeMonitoring(t *testing.T) {
	h := NewHTTP()
	get := serve(t, h)
	if code, body := get("/metrics/flume"); code != http.StatusOK || body != "{}" {
		t.Errorf("without components: %d %q", code, body)
	}
	gauge := func(name string, value float64, labels ...string) {
		t.Helper()
		constant := make(prometheus.Labels)
		for i := 0; i < len(labels); i += 2 {
			constant[labels[i]] = labels[i+1]
		}
		h.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "spillway_" + name, Help: "x", ConstLabels: constant}, func() float64 { return value }))
	}
	gauge("ingest_records_total", 5, "source", "s")
	gauge("buffer_appended_records_total", 40, "queue", "q")
	gauge("buffer_capacity_records", 200, "queue", "q")
	gauge("buffer_queue_open", 1, "queue", "q")
	gauge("buffer_subscription_pending_records", 20, "subscription", "q/c1")
	gauge("buffer_subscription_pending_bytes", 50, "subscription", "q/c1")
	gauge("buffer_subscription_limit_bytes", 80, "subscription", "q/c1")
	gauge("buffer_subscription_delivered_records_total", 17, "subscription", "q/c1")
	gauge("buffer_subscription_dead_lettered_records_total", 3, "subscription", "q/c1")
	gauge("buffer_subscription_pending_records", 1, "subscription", "q/c2")
	gauge("buffer_subscription_pending_records", 2, "subscription", "r/c2")
	gauge("delivery_records_total", 17, "delivery", "k1")
	gauge("delivery_dead_letters_total", 3, "delivery", "k1")
	gauge("delivery_nacks_total", 2, "delivery", "k1")

	code, body := get("/metrics/flume")
	var all map[string]map[string]string
	if err := json.Unmarshal([]byte(body), &all); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if got := slices.Sorted(maps.Keys(all)); strings.Join(got, " ") != "CHANNEL.c1 CHANNEL.q.c2 CHANNEL.r.c2 SINK.k1 SOURCE.s" {
		t.Errorf("components are %v", got)
	}
	for at, want := range map[string]string{
		"SOURCE.s EventReceivedCount": "5", "SOURCE.s EventAcceptedCount": "5", "SOURCE.s Type": "SOURCE", "SOURCE.s StopTime": "0", "SOURCE.s OpenConnectionCount": "0",
		"CHANNEL.c1 ChannelSize": "20", "CHANNEL.c1 ChannelCapacity": "200", "CHANNEL.c1 ChannelFillPercentage": "62.5", "CHANNEL.c1 EventPutSuccessCount": "40",
		"CHANNEL.c1 EventTakeSuccessCount": "20", "CHANNEL.c1 Open": "true", "CHANNEL.r.c2 ChannelSize": "2", "CHANNEL.r.c2 Open": "false",
		"SINK.k1 EventDrainSuccessCount": "17", "SINK.k1 EventDrainAttemptCount": "20", "SINK.k1 EventWriteFail": "3", "SINK.k1 RollbackCount": "2",
	} {
		component, counter, _ := strings.Cut(at, " ")
		if got := all[component][counter]; got != want {
			t.Errorf("%s is %q, want %q", at, got, want)
		}
	}
	for name, c := range all {
		kind, _, _ := strings.Cut(name, ".")
		if len(c) != len(flumeKinds[kind])+3 {
			t.Errorf("%s has %d counters, want %d", name, len(c), len(flumeKinds[kind])+3)
		}
		if ms, err := strconv.ParseInt(c["StartTime"], 10, 64); err != nil || ms < 1_500_000_000_000 {
			t.Errorf("%s began at %s", name, c["StartTime"])
		}
	}
}
