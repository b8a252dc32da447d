package flume

import (
	"fmt"
	"slices"
	"strings"
)

func isHDFSSink(s *Component) bool {
	return strings.EqualFold(s.Type(), "hdfs") || s.Type() == "org.apache.flume.sink.hdfs.HDFSEventSink"
}

// knownSink reports whether Spillway has a destination like the sink's.
func knownSink(s *Component) bool { return isHDFSSink(s) || s.Type() == kafkaSinkClass }

// sink writes the delivery of a sink that is known.
func (c *converter) sink(g *group, s *Component, subscription string) {
	n, name := c.delivery(g, s, subscription)
	if isHDFSSink(s) {
		(&hdfsSink{converter: c, group: g, sink: s, node: n.child("hdfs"), to: "delivery." + name + ".hdfs"}).write()
	} else {
		c.kafkaSink(g, s, n.child("kafka"), "delivery."+name+".kafka", "kafka.producer.")
	}
	s.say("channel", Carried, "subscription %s", subscription)
	for _, k := range s.order {
		if !k.used && strings.HasPrefix(k.name, "kafka.") {
			s.say(k.name, NotNeeded, "a setting of Java's Kafka client; Spillway's has its own")
		}
	}
}

// delivery writes the head of a delivery with ports of its own.
func (c *converter) delivery(g *group, s *Component, subscription string) (*node, string) {
	all := c.root.child("delivery")
	name := unused(identifier(s.Name), func(n string) bool { return hasChild(all, n) })
	n := all.child(name)
	n.comment(fmt.Sprintf("Flume's %s %s: spillway delivery %s -c FILE", singular(s.Kind), s.Name, name))
	n.text("subscription", subscription)
	if c.ports > 0 {
		n.plain("listen", fmt.Sprintf(`"localhost:%d"`, 7420+2*c.ports))
		n.plain("http", fmt.Sprintf(`"localhost:%d"`, 7421+2*c.ports))
	}
	c.ports++
	ch := s
	if s.Kind == SinkKind {
		ch = c.agent.components[ChannelKind][s.value("channel")]
	}
	transforms := append(c.transforms(g), g.keeps[ch]...)
	if s.flag("useFlumeEventFormat", false) || s.Kind == ChannelKind && flumeEvents(s) {
		transforms = append(transforms, "encode: flume_event")
	}
	if len(transforms) > 0 {
		n.child("transforms").items = transforms
	}
	s.say("type", Carried, "delivery.%s", name)
	return n, name
}

// headers returns what stands in a template for a header: of the interceptors, of the Kafka
// source's own names, and of records. Unknown is true when the source never sets the header.
func (c *converter) header(g *group, name string) (template string, unknown bool) {
	for i, s := range g.sources {
		t, missing := c.headerOf(s, name)
		if i == 0 {
			template, unknown = t, missing
		}
		unknown = unknown || missing || t != template
	}
	return template, unknown
}

func (c *converter) headerOf(s *Component, name string) (string, bool) {
	if value, found := c.headersOf(s)[name]; found {
		return value, false
	}
	if isKafkaChannel(s) && !flumeEvents(s) { // its events have no headers
		return "%{" + name + "}", true
	}
	if flumeEvents(s) || slices.Contains(extracted(s), name) {
		return "%{" + name + "}", false
	}
	topicHeader := s.value("topicHeader")
	if topicHeader == "" {
		topicHeader = "topic"
	}
	switch {
	case name == topicHeader && s.flag("setTopicHeader", true):
		return "%{topic}", false
	case s.has("header." + name):
		return "%{" + s.value("header."+name) + "}", false
	case slices.Contains([]string{"key", "partition", "offset", "timestamp"}, name):
		return "%{" + name + "}", false
	}
	return "%{" + name + "}", true
}

// template carries a template of Flume over: headers become what they are here, and what Flume
// does not know is left out as Flume leaves it out.
func (c *converter) template(g *group, s *Component, key, text, letters string) string {
	var out strings.Builder
	var notes []string
	for text != "" {
		literal, rest, found := strings.Cut(text, "%")
		out.WriteString(literal)
		if !found {
			break
		}
		text = rest
		switch {
		case rest == "":
			out.WriteString("%%")
		case rest[0] == '{' && strings.Contains(rest, "}"):
			name, after, _ := strings.Cut(rest[1:], "}")
			template, unknown := c.header(g, name)
			if unknown {
				notes = append(notes, fmt.Sprintf("no source sets the header %s: Flume wrote nothing there, Spillway writes the Kafka record's header of that name", name))
			}
			out.WriteString(template)
			text = after
		case rest[0] == '[' && letters != "" && strings.Contains(rest, "]"):
			end := strings.IndexByte(rest, ']') + 1
			out.WriteString("%" + rest[:end])
			text = rest[end:]
		case letters != "" && strings.IndexByte(letters, rest[0]) >= 0:
			out.WriteString("%" + rest[:1])
			text = rest[1:]
		case rest[0] == '%' && letters != "":
			out.WriteString("%%")
			text = rest[1:]
		case rest[0] >= 'a' && rest[0] <= 'z' || rest[0] >= 'A' && rest[0] <= 'Z':
			notes = append(notes, fmt.Sprintf("Flume knows no %%%c and writes nothing for it", rest[0]))
			text = rest[1:]
		default:
			out.WriteString("%%")
		}
	}
	if len(notes) > 0 {
		s.say(key, Changed, "%s", strings.Join(notes, "; "))
	}
	return out.String()
}
