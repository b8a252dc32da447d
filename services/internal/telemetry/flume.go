package telemetry

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Flume's agents answer /metrics with JSON: for each component a map of counters, whose values are
// strings. Monitoring that reads it goes on with /metrics/flume: a source of ingest is a SOURCE, a
// subscription a CHANNEL, a delivery a SINK. Counters without a counterpart are 0, as they are in
// Flume for components that do not count them.

// flumeKinds has the counters of Flume 1.11 for each kind of component.
var flumeKinds = map[string][]string{
	"SOURCE": {"AppendAcceptedCount", "AppendBatchAcceptedCount", "AppendBatchReceivedCount", "AppendReceivedCount", "ChannelWriteFail", "EventAcceptedCount",
		"EventReadFail", "EventReceivedCount", "GenericProcessingFail", "KafkaCommitTimer", "KafkaEmptyCount", "KafkaEventGetTimer", "OpenConnectionCount"},
	"CHANNEL": {"ChannelCapacity", "ChannelFillPercentage", "ChannelSize", "CheckpointWriteErrorCount", "EventPutAttemptCount", "EventPutErrorCount", "EventPutSuccessCount",
		"EventTakeAttemptCount", "EventTakeErrorCount", "EventTakeSuccessCount", "Open", "RollbackCounter", "Unhealthy"},
	"SINK": {"BatchCompleteCount", "BatchEmptyCount", "BatchUnderflowCount", "ChannelReadFail", "ConnectionClosedCount", "ConnectionCreatedCount", "ConnectionFailedCount",
		"EventDrainAttemptCount", "EventDrainSuccessCount", "EventWriteFail", "KafkaEventSendTimer", "RollbackCount"},
}

// samples are the values of metrics by their name and the value of one of their labels.
type samples map[string]map[string]float64

// sampled reads the metrics of a registry. Those with several labels are summed up by the first.
func sampled(families []*dto.MetricFamily) samples {
	all := make(samples)
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "spillway_") && f.GetName() != "process_start_time_seconds" {
			continue
		}
		values := make(map[string]float64)
		for _, m := range f.Metric {
			label := ""
			for _, l := range m.Label {
				if n := l.GetName(); n == "source" || n == "subscription" || n == "delivery" || n == "queue" {
					label = l.GetValue()
				}
			}
			values[label] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
		all[f.GetName()] = values
	}
	return all
}

// flumeCounters returns what an agent of Flume would answer.
func flumeCounters(families []*dto.MetricFamily) map[string]map[string]string {
	s := sampled(families)
	started := strconv.FormatInt(int64(s["process_start_time_seconds"][""]*1000), 10)
	all := make(map[string]map[string]string)
	component := func(kind, name string, values map[string]float64) {
		counters := map[string]string{"Type": kind, "StartTime": started, "StopTime": "0"}
		for _, c := range flumeKinds[kind] {
			counters[c] = strconv.FormatInt(int64(values[c]), 10)
		}
		all[kind+"."+name] = counters
	}
	for name, records := range s["spillway_ingest_records_total"] {
		component("SOURCE", name, map[string]float64{"EventReceivedCount": records, "EventAcceptedCount": records})
	}
	const ofSubscription = "spillway_buffer_subscription_"
	names := channelNames(slices.Collect(maps.Keys(s[ofSubscription+"pending_records"])))
	for sub, pending := range s[ofSubscription+"pending_records"] {
		queue, _, _ := strings.Cut(sub, "/")
		appended := s["spillway_buffer_appended_records_total"][queue]
		taken := s[ofSubscription+"delivered_records_total"][sub] + s[ofSubscription+"dead_lettered_records_total"][sub]
		capacity := s["spillway_buffer_capacity_records"][queue]
		component("CHANNEL", names[sub], map[string]float64{
			"ChannelCapacity": capacity, "ChannelSize": pending, "EventPutAttemptCount": appended, "EventPutSuccessCount": appended,
			"EventTakeAttemptCount": taken, "EventTakeSuccessCount": taken,
		})
		fill := 0.0
		for _, part := range [][2]float64{{pending, capacity}, {s[ofSubscription+"pending_bytes"][sub], s[ofSubscription+"limit_bytes"][sub]}} {
			if part[1] > 0 {
				fill = max(fill, 100*part[0]/part[1])
			}
		}
		counters := all["CHANNEL."+names[sub]]
		counters["ChannelFillPercentage"] = strconv.FormatFloat(fill, 'f', -1, 64)
		counters["Open"] = strconv.FormatBool(s["spillway_buffer_queue_open"][queue] > 0)
	}
	for name, records := range s["spillway_delivery_records_total"] {
		dead := s["spillway_delivery_dead_letters_total"][name]
		component("SINK", name, map[string]float64{
			"EventDrainAttemptCount": records + dead, "EventDrainSuccessCount": records, "EventWriteFail": dead,
			"RollbackCount": s["spillway_delivery_nacks_total"][name], "ConnectionFailedCount": s["spillway_delivery_refused_acks_total"][name],
		})
	}
	return all
}

// channelNames returns what the subscriptions are called among Flume's channels: their own names,
// or with their queue's where two queues have one of the name.
func channelNames(subscriptions []string) map[string]string {
	count := make(map[string]int)
	for _, full := range subscriptions {
		_, name, _ := strings.Cut(full, "/")
		count[name]++
	}
	names := make(map[string]string, len(subscriptions))
	for _, full := range subscriptions {
		queue, name, _ := strings.Cut(full, "/")
		if names[full] = name; count[name] > 1 {
			names[full] = queue + "." + name
		}
	}
	return names
}

// flume answers as the monitoring of an agent of Flume does.
func (h *HTTP) flume(w http.ResponseWriter, _ *http.Request) {
	families, err := prometheus.Gatherer(h.Registry).Gather()
	if err != nil {
		answer(w, http.StatusInternalServerError, err.Error())
		return
	}
	text, err := json.Marshal(flumeCounters(families))
	if err != nil {
		answer(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	_, _ = w.Write(text) // the client may be gone
}
