package flume

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// sinks writes the deliveries of a channel. Sinks that say the same share the subscription, as
// instances of one delivery. Sinks that differ compete for events in Flume, so that which of them
// writes an event is chance: each gets a subscription of its own, and all records.
func (c *converter) sinks(g *group, ch *Component, queue *node, queueName, subscription string) {
	sinks := c.agent.sinksOf(ch)
	if len(sinks) == 0 {
		if isKafkaChannel(ch) {
			c.kafkaChannelAsSink(g, ch, queueName+"/"+subscription)
		} else {
			c.agent.remarks = append(c.agent.remarks, Remark{0, fmt.Sprintf("channel %s has no sink: Flume fills it up and stops; delete its subscription, or add a delivery", ch.Name), Changed})
		}
		return
	}
	slices.SortStableFunc(sinks, func(a, b *Component) int { return cmp.Compare(c.priority(b), c.priority(a)) })
	var kinds []*Component // one of each kind of sinks that say the same
	for _, s := range sinks {
		if !knownSink(s) {
			continue // unfed says what becomes of it
		}
		same := slices.IndexFunc(kinds, func(k *Component) bool { return len(differences(k, s)) == 0 })
		switch {
		case same >= 0:
			for _, k := range s.order {
				s.say(k.name, Carried, "sink %s takes from the same channel with the same settings: run another instance of its delivery", kinds[same].Name)
			}
			continue
		case len(kinds) > 0 && c.balanced(kinds[0], s):
			c.sinkNotShared(kinds[0], s)
			continue
		case len(kinds) > 0 && c.standby(kinds[0], s):
			for _, k := range s.order {
				s.say(k.name, Changed, "sink %s is the standby of %s: while a destination is away, its records wait in the queue", s.Name, kinds[0].Name)
			}
			continue
		}
		kinds = append(kinds, s)
		to := subscription
		if len(kinds) > 1 {
			to = unused(subscription+"-"+identifier(s.Name), func(n string) bool { return hasChild(queue.child("subscriptions"), n) })
			n := queue.child("subscriptions").child(to)
			*n = node{key: to, children: queue.child("subscriptions").child(subscription).children}
			n.comment(fmt.Sprintf("Flume's channel %s for sink %s: in Flume each event went to one of the channel's sinks, by chance; here each sink gets all", ch.Name, s.Name))
			c.agent.remarks = append(c.agent.remarks, Remark{0, fmt.Sprintf("sinks %s and %s compete for the events of channel %s in Flume, each event going to one of them by chance; they differ in %s, so here each gets all records: leave out the delivery that you do not want",
				kinds[0].Name, s.Name, ch.Name, strings.Join(differences(kinds[0], s), ", ")), Changed})
		}
		c.sink(g, s, queueName+"/"+to)
	}
}

// grouped returns the type of the processor of a sink group with both sinks, or "".
func (c *converter) grouped(a, b *Component) (*Component, string) {
	for _, g := range c.agent.active(GroupKind) {
		if names := fields(g.value("sinks")); slices.Contains(names, a.Name) && slices.Contains(names, b.Name) {
			return g, strings.ToLower(g.value("processor.type"))
		}
	}
	return nil, ""
}

// priority returns the priority of a sink in its failover group, or 0.
func (c *converter) priority(s *Component) int64 {
	g, processor := c.grouped(s, s)
	if processor != "failover" {
		return 0
	}
	n, err := strconv.ParseInt(g.value("processor.priority."+s.Name), 10, 32)
	if err != nil {
		return 0 // Flume gives those without one the lowest
	}
	return n
}

// balanced reports whether a group divides events between two sinks on purpose.
func (c *converter) balanced(a, b *Component) bool {
	_, processor := c.grouped(a, b)
	return processor == "load_balance"
}

// standby reports whether a group gives events to the second sink only when the first fails.
func (c *converter) standby(a, b *Component) bool {
	_, processor := c.grouped(a, b)
	return processor == "failover"
}

// differences returns the keys in which two sinks differ in what they write. Prefixes of names
// differ between sinks that share a directory, and do not matter: names are unique here.
func differences(a, b *Component) []string {
	var names []string
	for _, n := range append(slices.Collect(maps.Keys(a.keys)), slices.Collect(maps.Keys(b.keys))...) {
		if n == "hdfs.filePrefix" || a.value(n) == b.value(n) || slices.Contains(names, n) {
			continue
		}
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (c *converter) sinkNotShared(first, other *Component) {
	for _, k := range other.order {
		other.say(k.name, Unsupported,
			"a group divides the events of channel %s between sinks %s and %s, which differ in %s: make them equal, or give each a channel of its own",
			first.value("channel"), first.Name, other.Name, strings.Join(differences(first, other), ", "))
	}
}

// unfed says of an active sink that was not converted what becomes of it.
func (c *converter) unfed(s *Component) {
	ch := c.agent.components[ChannelKind][s.value("channel")]
	fromKafka := slices.ContainsFunc(c.agent.active(SourceKind), func(source *Component) bool {
		return source.Type() == kafkaSourceClass && slices.Contains(c.agent.channelsOf(source), ch)
	}) || isKafkaChannel(ch)
	fate, note := Unsupported, ""
	switch {
	case !knownSink(s) && c.converted:
		fate, note = Changed, fmt.Sprintf("the sink stays in Flume (type %s): Spillway delivers to HDFS, to directories and to Kafka; give the rest of the agent a consumer group of its own", s.Type())
	case !knownSink(s):
		note = fmt.Sprintf("sink type %s: Spillway delivers to HDFS, to directories and to Kafka; have what reads the destination read one of these", s.Type())
	case !fromKafka && c.converted:
		fate, note = Changed, fmt.Sprintf("the sink stays in Flume, with the source that fills channel %s", s.value("channel"))
	case !isHDFSSink(s):
		note = fmt.Sprintf("the sink stays in Flume, with the source that fills channel %s: what it writes to Kafka, Spillway can read", s.value("channel"))
	default:
		note = fmt.Sprintf("no source that Spillway has fills channel %s: write what that source reads to Kafka first", s.value("channel"))
	}
	for _, k := range s.order {
		if !k.used {
			s.say(k.name, fate, "%s", note)
		}
	}
}

func (c *converter) sinkGroup(g *Component) {
	for _, k := range g.order {
		switch k.name {
		case "sinks":
			g.say(k.name, NotNeeded, "sinks of one channel share its subscription as instances of the delivery")
		case "processor.type":
			f, note := NotNeeded, "instances take what they can; one that dies loses nothing"
			if g.value(k.name) == "failover" {
				f, note = Changed, "all instances work at the same time; there are no priorities"
			}
			g.say(k.name, f, "%s", note)
		default:
			if strings.HasPrefix(k.name, "processor.priority.") {
				g.say(k.name, Changed, "instances have no priorities: all of them work")
			} else {
				g.say(k.name, NotNeeded, "instances of a delivery need no processor")
			}
		}
	}
}
