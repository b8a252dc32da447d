package flume

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// choice is the part of a source's events that a selector sends to a channel, by the value of a
// header: those with one of the values, or with none of them.
type choice struct {
	values []string
	except bool
}

// none reports whether the choice lets nothing pass.
func (c choice) none() bool { return !c.except && len(c.values) == 0 }

// optional reports whether every source of the group calls the channel optional: what it misses
// holds nobody back.
func (c *converter) optional(g *group, ch *Component) bool {
	for _, s := range g.sources {
		if strings.EqualFold(s.value("selector.type"), "multiplexing") {
			if required, _ := choiceOf(s, ch, false); !required.none() {
				return false
			}
		} else if !slices.Contains(fields(s.value("selector.optional")), ch.Name) {
			return false
		}
	}
	return true
}

// selector maps the selector of a source. Replicating is what a queue does. Multiplexing is what
// the topics and headers of subscriptions do, or transforms of the deliveries, where interceptors
// set the header.
func (c *converter) selector(s *Component, g *group) {
	t := s.value("selector.type")
	switch {
	case t == "" || strings.EqualFold(t, "replicating"):
		s.say("selector.type", Carried, "each channel is a subscription of the queue, which gets all records")
		s.say("selector.optional", Carried, "the subscriptions have required: false")
	case strings.EqualFold(t, "multiplexing"):
		c.multiplexing(s, g)
	default:
		saySelector(s, Unsupported, fmt.Sprintf("custom selector %s: route with the topics and headers of subscriptions, or with the transforms keep and drop of the deliveries", t))
	}
}

func saySelector(s *Component, fate Fate, note string) {
	for _, k := range s.order {
		if strings.HasPrefix(k.name, "selector.") {
			s.say(k.name, fate, "%s", note)
		}
	}
}

func (c *converter) multiplexing(s *Component, g *group) {
	header := s.value("selector.header")
	if header == "" {
		header = "flume.selector.header"
	}
	topicHeader := s.value("topicHeader")
	if topicHeader == "" {
		topicHeader = "topic"
	}
	constant, isConstant := c.headersOf(s)[header]
	_, record := s.keys["header."+header]
	switch {
	case isConstant && !strings.HasPrefix(constant, "%["):
		c.byConstant(s, g, strings.ReplaceAll(constant, "%%", "%"))
	case header == topicHeader && s.flag("setTopicHeader", true):
		c.byTopic(s, g)
	case slices.Contains([]string{"partition", "offset", "timestamp"}, header) && !flumeEvents(s) || isConstant:
		saySelector(s, Unsupported, fmt.Sprintf("Spillway routes by topics, by headers of records and by what transforms find in them, not by %s", header))
	case record && !flumeEvents(s) && !slices.Contains(extracted(s), header):
		c.byHeader(s, g, s.value("header."+header))
	default:
		if !flumeEvents(s) && !slices.Contains(extracted(s), header) {
			c.agent.remarks = append(c.agent.remarks, Remark{0, fmt.Sprintf(
				"no interceptor that was carried over sets the header %s, by which the selector of source %s routes: Flume sent all records to the default channels unless a class of yours sets it; Spillway looks at the Kafka record's header of that name", header, s.Name), Changed})
		}
		c.byTransform(s, g, header)
	}
	for _, ch := range g.channels {
		if all, _ := choiceOf(s, ch, true); all.none() {
			c.agent.remarks = append(c.agent.remarks, Remark{0, fmt.Sprintf("the selector of source %s never sends anything to channel %s", s.Name, ch.Name), Changed})
		}
	}
}

// choiceOf returns what a selector sends to a channel, with the optional channels or without, and
// whether the selector has a default.
func choiceOf(s, ch *Component, optional bool) (sent choice, hasDefault bool) {
	var mapped, here []string // values with a mapping, and those that are mapped to the channel
	for _, k := range s.order {
		value, found := strings.CutPrefix(k.name, "selector.mapping.")
		if s.keys[k.name] != k || !found {
			continue
		}
		mapped = append(mapped, value)
		if slices.Contains(fields(k.entry.Value), ch.Name) {
			here = append(here, value)
		}
	}
	byDefault := slices.Contains(fields(s.value("selector.default")), ch.Name)
	for _, k := range s.order {
		value, found := strings.CutPrefix(k.name, "selector.optional.")
		if optional && found && slices.Contains(fields(k.entry.Value), ch.Name) && !slices.Contains(here, value) {
			here = append(here, value)
		}
	}
	if !byDefault {
		return choice{values: here}, s.has("selector.default")
	}
	others := slices.DeleteFunc(mapped, func(v string) bool { return slices.Contains(here, v) })
	return choice{values: others, except: true}, true
}

// byConstant is for a header that has the same value in each event.
func (c *converter) byConstant(s *Component, g *group, value string) {
	for _, ch := range g.channels {
		if sent, _ := choiceOf(s, ch, true); slices.Contains(sent.values, value) == sent.except {
			g.keep(ch, `keep: {regex: "$^x"}`) // nothing
			c.agent.remarks = append(c.agent.remarks, Remark{0, fmt.Sprintf("the header that the selector of source %s looks at is always %s: channel %s gets nothing", s.Name, value, ch.Name), Changed})
		}
	}
	saySelector(s, Carried, "an interceptor sets the header to "+value+" in each event")
}

// byTopic gives each channel the topics that the selector's mapping sends to it.
func (c *converter) byTopic(s *Component, g *group) {
	if g.topics == nil {
		g.topics = make(map[*Component][]string)
	}
	topics := splitCommas(s.value(s.first("kafka.topics", "topic")))
	open := s.has("kafka.topics.regex")
	for _, ch := range g.channels {
		sent, _ := choiceOf(s, ch, true)
		switch {
		case open && sent.except && len(sent.values) > 0:
			saySelector(s, Unsupported, fmt.Sprintf("channel %s gets all topics but some of an expression: name the topics in kafka.topics", ch.Name))
			return
		case open && sent.except:
			continue
		case open:
			g.topics[ch] = sent.values
		default:
			for _, topic := range topics {
				if slices.Contains(sent.values, topic) != sent.except {
					g.topics[ch] = append(g.topics[ch], topic)
				}
			}
		}
		if len(g.topics[ch]) == 0 {
			delete(g.topics, ch)
			g.keep(ch, `keep: {regex: "$^x"}`) // nothing
		}
	}
	saySelector(s, Carried, "the topics of the queue's subscriptions")
}

// byHeader gives each subscription a filter on a header of the Kafka record.
func (c *converter) byHeader(s *Component, g *group, header string) {
	for _, ch := range g.channels {
		sent, _ := choiceOf(s, ch, true)
		switch {
		case sent.none():
			g.keep(ch, `keep: {regex: "$^x"}`) // nothing
		case len(sent.values) > 0:
			key := "in"
			if sent.except {
				key = "not_in"
			}
			items := make([]string, len(sent.values))
			for i, v := range sent.values {
				items[i] = quoteYAML(v)
			}
			if g.headers == nil {
				g.headers = make(map[*Component]string)
			}
			g.headers[ch] = fmt.Sprintf("{name: %s, %s: [%s]}", quoteYAML(header), key, strings.Join(items, ", "))
		}
	}
	saySelector(s, Carried, "headers of the queue's subscriptions")
}

// byTransform leaves out records behind the transforms that set the header.
func (c *converter) byTransform(s *Component, g *group, header string) {
	for _, ch := range g.channels {
		sent, _ := choiceOf(s, ch, true)
		if sent.none() {
			g.keep(ch, `keep: {regex: "$^x"}`) // nothing
			continue
		}
		if len(sent.values) == 0 {
			continue
		}
		what := "keep"
		if sent.except {
			what = "drop"
		}
		literal := make([]string, len(sent.values))
		for i, v := range sent.values {
			literal[i] = regexp.QuoteMeta(v)
		}
		g.keep(ch, fmt.Sprintf("%s: {from: %s, regex: %s}", what, quoteYAML("header:"+header), quoteYAML("^(?:"+strings.Join(literal, "|")+")$")))
	}
	saySelector(s, Carried, "the transforms keep and drop of the deliveries, behind those of the interceptors")
}
