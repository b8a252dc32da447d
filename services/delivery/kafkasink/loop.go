package kafkasink

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// maxReturns is how often a record may come back to this delivery, under other names each
	// time, before that counts as for ever: sources that name their topics one by one end such a
	// chain.
	maxReturns = 3
	// maxWays bounds the search, and maxVerdicts what is remembered of it.
	maxWays     = 10_000
	maxVerdicts = 10_000
	// maxHops is how many deliveries with provenance a record may have passed.
	maxHops = 16
)

// roundReason is why a record is dead-lettered that goes round by ways that the buffer does not
// see.
var roundReason = fmt.Sprintf("the record has passed %d deliveries, as its headers %s tell: it goes round; allow_loop: true allows it", maxHops, topicHeader)

// loops finds out whether what is produced would come back. What is read where comes from the
// buffer, by cluster id, so it does not matter by which addresses the brokers are reached.
type loops struct {
	mu       sync.Mutex
	flows    *spillwayv1.Flows // that the verdicts are about
	patterns map[string]*regexp.Regexp
	verdicts map[way]string
}

// way is a topic on its way to another.
type way struct{ fromCluster, from, cluster, topic string }

// reason returns why the records of a topic must not be produced to another, or "".
func (l *loops) reason(flows *spillwayv1.Flows, subscription string, w way) string {
	const allow = "they would go round for ever; allow_loop: true allows it"
	if w.cluster == w.fromCluster && w.topic == w.from {
		return fmt.Sprintf("topic %s is the one that its records were read from: %s", w.topic, allow)
	}
	if flows == nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flows != flows || len(l.verdicts) > maxVerdicts {
		l.flows, l.patterns, l.verdicts = flows, make(map[string]*regexp.Regexp), make(map[way]string)
	}
	verdict, known := l.verdicts[w]
	if !known {
		if by := l.search(subscription, w); by != "" {
			verdict = fmt.Sprintf("records of topic %s that are produced to topic %s come back to this delivery, since %s: %s", w.from, w.topic, by, allow)
		}
		l.verdicts[w] = verdict
	}
	return verdict
}

// Loop returns why a delivery would not produce the records of a topic, or "". The delivery is
// that of a subscription; flows are all that is read and produced.
func Loop(flows *spillwayv1.Flows, subscription, fromCluster, from string) string {
	for _, t := range flows.Targets {
		if t.Subscription == subscription {
			return new(loops).reason(flows, subscription, way{fromCluster, from, t.Cluster, nextTopic(t.Topic, from)})
		}
	}
	return ""
}

// hop is a topic that records were produced to.
type hop struct {
	cluster, topic string
	returns        int    // how often they came back to this delivery
	by             string // the first source that read them
}

// seen is a topic that a delivery was given.
type seen struct{ subscription, cluster, topic string }

// search follows records through the sources that read them and the deliveries that produce them
// again. A delivery whose topic is named by headers is taken to name the same one again.
func (l *loops) search(subscription string, w way) (by string) {
	before := map[seen]bool{{subscription, w.fromCluster, w.from}: true}
	hops := []hop{{cluster: w.cluster, topic: w.topic}}
	for n := 0; n < len(hops) && n < maxWays; n++ {
		h := hops[n]
		for _, source := range l.flows.Sources {
			if source.Cluster != h.cluster || !l.reads(source, h.topic) {
				continue
			}
			by := h.by
			if by == "" {
				by = fmt.Sprintf("source %s reads that into queue %s", source.Source, source.Queue)
			}
			for _, target := range l.flows.Targets {
				queue, _, _ := strings.Cut(target.Subscription, "/")
				if queue != source.Queue || !wants(target, h.topic) {
					continue
				}
				at, returns := seen{target.Subscription, h.cluster, h.topic}, h.returns
				if target.Subscription == subscription {
					if returns++; before[at] || returns >= maxReturns {
						return by
					}
				}
				if before[at] {
					continue
				}
				before[at] = true
				if next := nextTopic(target.Topic, h.topic); len(next) <= maxTopicBytes {
					hops = append(hops, hop{target.Cluster, next, returns, by})
				}
			}
		}
	}
	return ""
}

// reads says whether a source reads a topic, now or as soon as it is there.
func (l *loops) reads(source *spillwayv1.FlowSource, topic string) bool {
	for _, item := range source.Wanted {
		pattern, is := strings.CutPrefix(item, config.TopicPattern)
		if !is {
			if item == topic {
				return true
			}
			continue
		}
		compiled, known := l.patterns[pattern]
		if !known {
			compiled, _ = config.CompileTopicPattern(pattern) // nil: an ingest refuses it, too
			l.patterns[pattern] = compiled
		}
		if compiled != nil && compiled.MatchString(topic) {
			return true
		}
	}
	return false
}

// wants says whether a subscription wants a topic.
func wants(target *spillwayv1.FlowTarget, topic string) bool {
	for _, glob := range target.Wanted {
		if ok, _ := path.Match(glob, topic); ok {
			return true
		}
	}
	return false
}

// nextTopic is the topic that a template makes of another.
func nextTopic(text, topic string) string {
	t, err := parseTemplate(text)
	if err != nil || t.perRecord() {
		return topic
	}
	name, _ := t.append(nil, topic, nil)
	return string(name)
}

// hops counts the deliveries with provenance that a record has passed.
func hopsOf(headers []recordbatch.Header) int {
	n := 0
	for i := range headers {
		if string(headers[i].Name) == string(topicHeader) {
			n++
		}
	}
	return n
}

// knowing is a session that tells where records come from and go to.
type knowing interface{ Flows() *spillwayv1.Flows }

// refuseLoops refuses to produce to the topics from which records would come back, and returns
// the others' names. A name that a record's header made is the record's fault, which is
// dead-lettered; other records wait for the configuration to be put right.
func (s *Sink) refuseLoops(j *job, cluster string, names []string) (others []string, failure error) {
	if s.cfg.AllowLoop {
		return names, nil
	}
	var flows *spillwayv1.Flows
	if k, ok := j.session.(knowing); ok {
		flows = k.Flows()
	}
	for _, name := range names {
		reason := j.loops.reason(flows, s.subscription, way{j.source.cluster, j.source.topic, cluster, name})
		switch {
		case reason == "":
			others = append(others, name)
		case s.perRecord:
			j.deadLetterTarget(j.byName[name], reason)
		case failure == nil:
			failure = fmt.Errorf("%s", reason)
		}
	}
	return others, failure
}
