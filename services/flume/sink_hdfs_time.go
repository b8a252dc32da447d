package flume

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// time writes where the time of the escapes comes from.
func (h *hdfsSink) time() {
	s := h.sink
	own := slices.ContainsFunc(h.group.sources, ownTime)
	switch {
	case s.flag("hdfs.useLocalTimeStamp", false):
		h.node.text("time_from", "local", "hdfs.useLocalTimeStamp; record would put late records where they belong, and allow _SUCCESS")
	case own:
		h.node.text("time_from", "local", "the interceptor timestamp; record would put late records where they belong, and allow _SUCCESS")
	case slices.ContainsFunc(h.group.sources, func(s *Component) bool { return customTime(s) != "" }):
		h.node.text("time_from", "kafka", "TODO: a custom interceptor set the time of events; the transform set_time takes it from a field of the record, such as set_time: {from: \"json:ts\"}")
	case slices.ContainsFunc(h.group.sources, flumeEvents):
		h.node.text("time_from", "record", "the header timestamp of Flume's event, as Flume takes it")
	case h.withoutTime():
		h.node.text("time_from", "kafka", "Flume has no time for records of a Kafka channel that are no events of Flume's")
		if timeEscape.MatchString(s.value("hdfs.path") + s.value("hdfs.filePrefix")) {
			h.agent.remarks = append(h.agent.remarks, Remark{s.keys["hdfs.path"].entry.Line, fmt.Sprintf(
				"the path of sink %s has escapes of time, and nothing sets the header timestamp: in Flume each event fails, and its batch is tried for ever; here the time is the Kafka record's", s.Name), Changed})
		}
	case h.release <= 10:
		h.node.text("time_from", "local", fmt.Sprintf("Flume %s took its own clock for the time of a record, not Kafka's; kafka would put late records where they belong, and allow _SUCCESS", h.release))
	default:
		h.node.text("time_from", "kafka", "Flume 1.11 takes the timestamp of the Kafka record")
	}
	s.say("hdfs.useLocalTimeStamp", Carried, "%s.time_from", h.to)
	if s.has("hdfs.timeZone") {
		h.node.text("time_zone", h.carry("hdfs.timeZone", "time_zone", "", ""))
	}
	h.rounding()
}

// rounding writes to what the time of paths is rounded down.
func (h *hdfsSink) rounding() {
	s := h.sink
	unit := strings.ToLower(s.value("hdfs.roundUnit"))
	s.say("hdfs.round", Carried, "%s.round", h.to)
	switch {
	case !s.flag("hdfs.round", false):
		for _, key := range []string{"hdfs.roundValue", "hdfs.roundUnit"} {
			s.say(key, NotNeeded, "hdfs.round is not true, so Flume does not round")
		}
		return
	case unit != "" && !slices.Contains([]string{"second", "minute", "hour"}, unit):
		s.say("hdfs.roundValue", NotNeeded, "Flume does not round")
		s.say("hdfs.roundUnit", Changed, "Flume knows second, minute and hour only, and does not round; neither does the pipeline")
		return
	}
	h.node.plain("round", "true")
	if v := s.value("hdfs.roundValue"); v != "" {
		s.say("hdfs.roundValue", Carried, "%s.round_value", h.to)
		h.node.plain("round_value", h.integer("hdfs.roundValue", v, "1"))
	}
	if unit != "" {
		s.say("hdfs.roundUnit", Carried, "%s.round_unit", h.to)
		h.node.text("round_unit", unit)
	}
}

// timeEscape finds an escape of time.
var timeEscape = regexp.MustCompile(`%[aAbBcdDeHIjklmMnpsStyYz]`)

// withoutTime reports whether no event of the sink has a header timestamp: a Kafka source sets it,
// a Kafka channel whose records are taken as they are does not.
func (h *hdfsSink) withoutTime() bool {
	return !slices.ContainsFunc(h.group.sources, func(s *Component) bool { return !isKafkaChannel(s) || flumeEvents(s) })
}
