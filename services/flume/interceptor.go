package flume

import (
	"fmt"
	"regexp"
	"strings"
)

// interceptorTypes are the short names of Flume's own interceptors.
var interceptorTypes = map[string]string{
	"org.apache.flume.interceptor.timestampinterceptor$builder":        "timestamp",
	"org.apache.flume.interceptor.hostinterceptor$builder":             "host",
	"org.apache.flume.interceptor.staticinterceptor$builder":           "static",
	"org.apache.flume.interceptor.regexfilteringinterceptor$builder":   "regex_filter",
	"org.apache.flume.interceptor.regexextractorinterceptor$builder":   "regex_extractor",
	"org.apache.flume.interceptor.searchandreplaceinterceptor$builder": "search_replace",
	"org.apache.flume.interceptor.removeheaderinterceptor$builder":     "remove_header",
	"org.apache.flume.sink.solr.morphline.uuidinterceptor$builder":     "uuid",
}

// interceptor is one interceptor of a source.
type interceptor struct {
	name, kind string
}

// interceptorsOf returns the interceptors of a source in order.
func interceptorsOf(s *Component) []interceptor {
	var all []interceptor
	for _, name := range fields(s.value("interceptors")) {
		t := s.value("interceptors." + name + ".type")
		kind := interceptorTypes[strings.ToLower(t)]
		if kind == "" {
			kind = strings.ToLower(t)
		}
		all = append(all, interceptor{name, kind})
	}
	return all
}

// headersOf returns the headers that interceptors set to a value that is the same for each event:
// it takes the place of the header in templates.
func (c *converter) headersOf(s *Component) map[string]string {
	headers := make(map[string]string)
	for _, i := range interceptorsOf(s) {
		at := "interceptors." + i.name + "."
		switch i.kind {
		case "static":
			key, value := s.value(at+"key"), s.value(at+"value")
			if key == "" {
				key = "key"
			}
			if value == "" {
				value = "value"
			}
			headers[key] = strings.ReplaceAll(value, "%", "%%")
		case "host":
			key := s.value(at + "hostHeader")
			if key == "" {
				key = "host"
			}
			headers[key] = "%[IP]"
			if !s.flag(at+"useIP", true) {
				headers[key] = "%[FQDN]"
			}
		}
	}
	return headers
}

// ownTime reports whether an interceptor replaces the time of events by the time they are read.
func ownTime(s *Component) bool {
	for _, i := range interceptorsOf(s) {
		if i.kind == "timestamp" && !s.flag("interceptors."+i.name+".preserveExisting", false) {
			return true
		}
	}
	return false
}

// customTime returns the class of a custom interceptor whose name says that it sets the time of
// events, or "".
func customTime(s *Component) string {
	for _, i := range interceptorsOf(s) {
		class := s.value("interceptors." + i.name + ".type")
		name := strings.ToLower(strings.TrimSuffix(class[strings.LastIndexByte(class, '.')+1:], "$Builder"))
		if strings.Contains(class, ".") && interceptorTypes[strings.ToLower(class)] == "" && (strings.Contains(name, "timestamp") || strings.HasPrefix(name, "timeinterceptor")) {
			return class
		}
	}
	return ""
}

// transforms returns the transforms of a delivery that do what the interceptors of a group's
// source do, in their order. All sources of a group with interceptors are one.
func (c *converter) transforms(g *group) []string {
	var all []string
	for _, s := range g.sources {
		if flumeEvents(s) {
			all = append(all, "decode: flume_event")
			break
		}
	}
	s := g.sources[0]
	for _, i := range interceptorsOf(s) {
		if items, err := transformsOf(s, i); err == nil { // the report says of others what to do
			all = append(all, items...)
		}
	}
	return all
}

// flumeEvents reports whether the records of a source or channel are Flume's Avro events.
func flumeEvents(s *Component) bool {
	if isKafkaChannel(s) {
		return s.flag("parseAsFlumeEvent", true)
	}
	return s.flag("useFlumeEventFormat", false)
}

// transformsOf returns the transforms of an interceptor, or why there are none for it.
func transformsOf(s *Component, i interceptor) ([]string, error) {
	value := func(key, missing string) string {
		if v := s.value("interceptors." + i.name + "." + key); v != "" {
			return v
		}
		return missing
	}
	switch i.kind {
	case "static":
		return []string{fmt.Sprintf("set_header: {name: %s, value: %s, keep: %t}", quoteYAML(value("key", "key")), quoteYAML(value("value", "value")), isTrue(value("preserveExisting", "true")))}, nil
	case "regex_filter":
		expression := value("regex", ".*")
		what := "keep"
		if isTrue(value("excludeEvents", "false")) {
			what = "drop"
		}
		return []string{fmt.Sprintf("%s: {regex: %s}", what, quoteYAML(expression))}, re2(expression)
	case "search_replace":
		expression := value("searchPattern", "")
		with := groupReference.ReplaceAllString(value("replaceString", ""), "$${$1}")
		return []string{fmt.Sprintf("replace_value: {regex: %s, with: %s}", quoteYAML(expression), quoteYAML(with))}, re2(expression)
	case "remove_header":
		return removeHeaders(value)
	case "regex_extractor":
		return extractHeaders(value)
	}
	return nil, nil
}

// extracted returns the headers that a source's interceptors take out of records.
func extracted(s *Component) []string {
	var names []string
	for _, i := range interceptorsOf(s) {
		for _, name := range fields(s.value("interceptors." + i.name + ".serializers")) {
			names = append(names, s.value("interceptors."+i.name+".serializers."+name+".name"))
		}
	}
	return names
}

// groupReference is a reference to a group in Java's replacements.
var groupReference = regexp.MustCompile(`\$(\d)`)

// re2 returns why an expression of Java's is none of RE2.
func re2(expression string) error {
	if _, err := regexp.Compile(expression); err != nil {
		return fmt.Errorf("the regular expression %q needs Java (%w): write it without look-around and back references", expression, err)
	}
	return nil
}

func removeHeaders(value func(key, missing string) string) ([]string, error) {
	var all []string
	if name := value("withName", ""); name != "" {
		all = append(all, fmt.Sprintf("remove_header: {name: %s}", quoteYAML(name)))
	}
	if list := value("fromList", ""); list != "" {
		separator, err := regexp.Compile(value("fromListSeparator", `\s*,\s*`))
		if err != nil {
			return nil, err
		}
		for _, name := range separator.Split(list, -1) {
			all = append(all, fmt.Sprintf("remove_header: {name: %s}", quoteYAML(name)))
		}
	}
	if expression := value("matching", ""); expression != "" {
		all = append(all, fmt.Sprintf("remove_header: {matching: %s}", quoteYAML("^(?:"+expression+")$")))
		return all, re2(expression)
	}
	return all, nil
}

func extractHeaders(value func(key, missing string) string) ([]string, error) {
	expression := value("regex", "")
	var all []string
	for n, name := range fields(value("serializers", "")) {
		kind := value("serializers."+name+".type", "default")
		if kind != "default" && !strings.HasSuffix(kind, "PassThroughSerializer") {
			return nil, fmt.Errorf("serializer %s of the extracted text: use set_time in the delivery's transforms for times", kind)
		}
		header := value("serializers."+name+".name", "")
		all = append(all, fmt.Sprintf("extract_header: {name: %s, regex: %s, group: %d}", quoteYAML(header), quoteYAML(expression), n+1))
	}
	return all, re2(expression)
}

// interceptors says what becomes of the interceptors of a source.
func (c *converter) interceptors(s *Component) {
	s.say("interceptors", Carried, "see each of them")
	known := make(map[string]bool)
	for _, i := range interceptorsOf(s) {
		known[i.name] = true
		fate, note := c.interceptor(s, i)
		for _, k := range s.order {
			if strings.HasPrefix(k.name, "interceptors."+i.name+".") {
				s.say(k.name, fate, "%s", note)
			}
		}
	}
	for _, k := range s.order {
		if name, found := strings.CutPrefix(k.name, "interceptors."); found {
			name, _, _ = strings.Cut(name, ".")
			if !known[name] {
				s.say(k.name, Dropped, "interceptor %s is not in the list of interceptors", name)
			}
		}
	}
}

func (c *converter) interceptor(s *Component, i interceptor) (Fate, string) {
	switch i.kind {
	case "timestamp":
		if ownTime(s) {
			return Carried, "deliveries have time_from: local"
		}
		return NotNeeded, "every record of Kafka has a timestamp already"
	case "static":
		return Carried, "transforms of the deliveries; in paths and topics its value takes the place of the header"
	case "host":
		return Carried, "its value takes the place of the header in paths, prefixes and topics; it is not written with the record"
	case "uuid":
		return NotNeeded, "a record is named by its topic, partition and offset"
	case "regex_filter", "regex_extractor", "search_replace", "remove_header":
		if _, err := transformsOf(s, i); err != nil {
			return Unsupported, err.Error()
		}
		return Carried, "transforms of the deliveries"
	case "":
		return Dropped, "the interceptor has no type"
	}
	if class := s.value("interceptors." + i.name + ".type"); class == customTime(s) {
		return Changed, fmt.Sprintf("custom interceptor %s, whose name says that it sets the time of events: here it is the Kafka record's; put the transform set_time with the field that the class reads into the delivery, such as set_time: {from: \"json:ts\"}", class)
	}
	return Unsupported, fmt.Sprintf("custom interceptor %s: do its work with transforms of the delivery (docs/configuration.md), or where records are produced", s.value("interceptors."+i.name+".type"))
}
