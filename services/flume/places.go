package flume

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sample is a record of Kafka to be placed.
type Sample struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Timestamp int64             `json:"timestamp"` // ms since 1970
	Key       *string           `json:"key"`
	Value     string            `json:"value"`
	Headers   map[string]string `json:"headers"`
}

// Place is where Flume writes a sample.
type Place struct {
	Sink     string
	Delivery string // that the import makes of the sink, perhaps with a number behind it
	Sample   int    // index
	Dir      string // without the file system; empty with Err
	Err      error
}

// Places says in which directories the HDFS sinks of an agent write samples, by the rules of Flume
// itself. Host yields localhost, IP and FQDN; now is the time of Flume's own clock. What a custom
// class decides it cannot know: that is an error of the place.
func Places(data []byte, o Options, samples []Sample, now time.Time, host func(string) (string, error)) ([]Place, error) {
	a, err := validAgent(data, o)
	if err != nil {
		return nil, err
	}
	c := &converter{agent: a, options: o, root: &node{}, release: releaseOf(a, o.Version)}
	var all []Place
	for _, sink := range a.active(SinkKind) {
		if !isHDFSSink(sink) {
			continue
		}
		ch := a.components[ChannelKind][sink.value("channel")]
		bucket, err := bucketOf(sink, now, host)
		if err != nil {
			return nil, err
		}
		for i := range samples {
			for _, source := range c.feeding(ch) {
				if !reads(source, samples[i].Topic) {
					continue
				}
				p := Place{Sink: sink.Name, Delivery: identifier(sink.Name), Sample: i}
				headers, goes, err := c.event(source, ch, &samples[i], now, host)
				if err == nil && !goes {
					continue
				}
				if err == nil {
					p.Dir, err = bucket.escape(directoryOf(sink.value("hdfs.path")), headers)
				}
				if p.Err = err; err != nil {
					p.Dir = ""
				}
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// feeding returns the Kafka sources of a channel, or the channel when it is one itself.
func (c *converter) feeding(ch *Component) []*Component {
	var all []*Component
	for _, s := range c.agent.active(SourceKind) {
		if s.Type() == kafkaSourceClass && slices.Contains(c.agent.channelsOf(s), ch) {
			all = append(all, s)
		}
	}
	if len(all) == 0 && isKafkaChannel(ch) {
		all = append(all, ch)
	}
	return all
}

// reads reports whether a source reads a topic.
func reads(s *Component, topic string) bool {
	if expression := s.value("kafka.topics.regex"); expression != "" {
		re, err := regexp.Compile("^(?:" + expression + ")$")
		return err == nil && re.MatchString(topic)
	}
	key := s.first("kafka.topics", "topic", "kafka.topic")
	return slices.Contains(splitCommas(s.value(key)), topic)
}

// directoryOf returns the path without its file system.
func directoryOf(path string) string {
	if _, rest, found := strings.Cut(path, "://"); found {
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	return path
}

func bucketOf(sink *Component, now time.Time, host func(string) (string, error)) (*bucketPath, error) {
	b := &bucketPath{zone: time.Local, now: now, host: host, local: sink.flag("hdfs.useLocalTimeStamp", false),
		round: sink.flag("hdfs.round", false), unit: strings.ToLower(sink.value("hdfs.roundUnit")), value: 1}
	if v := sink.value("hdfs.roundValue"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, fmt.Errorf("sink %s: hdfs.roundValue %q is no number", sink.Name, v)
		}
		b.value = n
	}
	if name := sink.value("hdfs.timeZone"); name != "" {
		zone, err := time.LoadLocation(name)
		if err != nil {
			return nil, fmt.Errorf("sink %s: hdfs.timeZone: %w", sink.Name, err)
		}
		b.zone = zone
	}
	return b, nil
}

// event returns the headers of the event that a source makes of a record, behind its interceptors,
// and whether its selector sends it to the channel.
func (c *converter) event(s, ch *Component, r *Sample, now time.Time, host func(string) (string, error)) (headers map[string]string, goes bool, err error) {
	if isKafkaChannel(s) || flumeEvents(s) {
		if flumeEvents(s) {
			return nil, false, fmt.Errorf("records of %s are Flume's own events, whose headers are in them: samples do not have these", s.Name)
		}
		headers = make(map[string]string)
		return headers, true, nil
	}
	headers = map[string]string{"timestamp": strconv.FormatInt(r.Timestamp, 10)}
	if c.release <= 10 {
		headers["timestamp"] = strconv.FormatInt(now.UnixMilli(), 10)
	}
	if c.release >= 7 {
		headers["partition"], headers["offset"] = strconv.Itoa(int(r.Partition)), strconv.FormatInt(r.Offset, 10)
	}
	if r.Key != nil {
		headers["key"] = *r.Key
	}
	topicHeader := s.value("topicHeader")
	if topicHeader == "" {
		topicHeader = "topic"
	}
	if s.flag("setTopicHeader", true) {
		headers[topicHeader] = r.Topic
	}
	for _, k := range s.order {
		if name, found := strings.CutPrefix(k.name, "header."); found {
			if value, there := r.Headers[k.entry.Value]; there {
				headers[name] = value
			}
		}
	}
	goes, err = c.intercept(s, headers, r.Value, now, host)
	if err != nil || !goes {
		return headers, goes, err
	}
	if strings.EqualFold(s.value("selector.type"), "multiplexing") {
		header := s.value("selector.header")
		if header == "" {
			header = "flume.selector.header"
		}
		sent, _ := choiceOf(s, ch, true)
		return headers, slices.Contains(sent.values, headers[header]) != sent.except, nil
	}
	return headers, true, nil
}

// intercept does what Flume's own interceptors do with an event. It returns false when one drops
// it.
func (c *converter) intercept(s *Component, headers map[string]string, value string, now time.Time, host func(string) (string, error)) (bool, error) {
	for _, i := range interceptorsOf(s) {
		get := func(key, missing string) string {
			if v := s.value("interceptors." + i.name + "." + key); v != "" {
				return v
			}
			return missing
		}
		set := func(name, v string, keep bool) {
			if _, there := headers[name]; !there || !keep {
				headers[name] = v
			}
		}
		switch i.kind {
		case "timestamp":
			set(get("headerName", "timestamp"), strconv.FormatInt(now.UnixMilli(), 10), isTrue(get("preserveExisting", "false")))
		case "static":
			set(get("key", "key"), get("value", "value"), isTrue(get("preserveExisting", "true")))
		case "host":
			what := "IP"
			if !isTrue(get("useIP", "true")) {
				what = "FQDN"
			}
			name, err := host(what)
			if err != nil {
				return false, err
			}
			set(get("hostHeader", "host"), name, isTrue(get("preserveExisting", "false")))
		case "uuid":
			set(get("headerName", "id"), "00000000-0000-0000-0000-000000000000", isTrue(get("preserveExisting", "true")))
		case "regex_filter":
			re, err := regexp.Compile(get("regex", ".*"))
			if err != nil {
				return false, err
			}
			if re.MatchString(value) == (isTrue(get("excludeEvents", "false"))) {
				return false, nil
			}
		case "search_replace":
			re, err := regexp.Compile(get("searchPattern", ""))
			if err != nil {
				return false, err
			}
			value = re.ReplaceAllString(value, groupReference.ReplaceAllString(get("replaceString", ""), "$${$1}"))
		case "regex_extractor":
			re, err := regexp.Compile(get("regex", ""))
			if err != nil {
				return false, err
			}
			if found := re.FindStringSubmatch(value); found != nil {
				for n, name := range fields(get("serializers", "")) {
					if n+1 < len(found) {
						headers[get("serializers."+name+".name", "")] = found[n+1]
					}
				}
			}
		case "remove_header":
			items, err := removedHeaders(get)
			if err != nil {
				return false, err
			}
			maps.DeleteFunc(headers, func(name, _ string) bool { return items(name) })
		default:
			return false, fmt.Errorf("interceptor %s is a class of yours, %s: what it does is not known here", i.name, get("type", "?"))
		}
	}
	return true, nil
}

// removedHeaders returns which headers an interceptor remove_header removes.
func removedHeaders(get func(key, missing string) string) (func(name string) bool, error) {
	matching, err := regexp.Compile("^(?:" + get("matching", "") + ")$")
	if err != nil {
		return nil, err
	}
	separator, err := regexp.Compile(get("fromListSeparator", `\s*,\s*`))
	if err != nil {
		return nil, err
	}
	list := separator.Split(get("fromList", ""), -1)
	return func(name string) bool {
		return name == get("withName", "") || slices.Contains(list, name) || get("matching", "") != "" && matching.MatchString(name)
	}, nil
}

// validAgent returns the agent that the options choose, of which Flume would start something.
func validAgent(data []byte, o Options) (*Agent, error) {
	document, err := ReadDocument(data)
	if err != nil {
		return nil, err
	}
	agents, _ := Agents(document)
	a, err := choose(agents, o.Agent)
	if err == nil {
		a.resolve(o.LookupEnv)
		err = a.validate()
	}
	return a, err
}

// DefaultSamples returns records of all topics of an agent that paths may stumble over: at the
// ends of hours, days, months and summer time, with and without key and headers.
func DefaultSamples(data []byte, o Options) ([]Sample, error) {
	a, err := validAgent(data, o)
	if err != nil {
		return nil, err
	}
	var topics, headers []string
	for _, s := range slices.Concat(a.active(SourceKind), a.active(ChannelKind)) {
		if s.Type() != kafkaSourceClass && !isKafkaChannel(s) {
			continue
		}
		topics = append(topics, splitCommas(s.value(s.first("kafka.topics", "topic", "kafka.topic")))...)
		for _, k := range s.order {
			if strings.HasPrefix(k.name, "header.") {
				headers = append(headers, k.entry.Value)
			}
		}
	}
	slices.Sort(topics)
	key := "key"
	var all []Sample
	for _, topic := range slices.Compact(topics) {
		for i, at := range []string{"2026-01-01T00:00:00Z", "2026-02-28T23:59:59Z", "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z", "2026-07-09T05:04:03Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-12-31T22:59:59Z"} {
			t, err := time.Parse(time.RFC3339, at)
			if err != nil {
				return nil, err
			}
			s := Sample{Topic: topic, Partition: int32(i), Offset: int64(100 + i), Timestamp: t.UnixMilli(), Value: fmt.Sprintf(`{"n":%d}`, i)}
			if i%2 == 0 {
				s.Key, s.Headers = &key, make(map[string]string)
				for _, h := range headers {
					s.Headers[h] = "value-" + strconv.Itoa(i)
				}
			}
			all = append(all, s)
		}
	}
	return all, nil
}
