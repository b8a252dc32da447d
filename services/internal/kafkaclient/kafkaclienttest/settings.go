package kafkaclienttest

import (
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// KeepSettings has a cluster in memory, which knows less settings than Kafka, keep all that topics
// are created with, and tell them. It returns them by topic.
func KeepSettings(c *kfake.Cluster) map[string]map[string]string {
	settings := make(map[string]map[string]string)
	c.ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		for i, topic := range r.(*kmsg.CreateTopicsRequest).Topics {
			if settings[topic.Topic] != nil {
				continue
			}
			settings[topic.Topic] = make(map[string]string)
			for _, s := range topic.Configs {
				settings[topic.Topic][s.Name] = *s.Value
			}
			r.(*kmsg.CreateTopicsRequest).Topics[i].Configs = nil
			for _, name := range []string{"max.message.bytes", "message.timestamp.type"} {
				if settings[topic.Topic][name] == "" {
					continue
				}
				s := kmsg.NewCreateTopicsRequestTopicConfig()
				s.Name, s.Value = name, kmsg.StringPtr(settings[topic.Topic][name])
				r.(*kmsg.CreateTopicsRequest).Topics[i].Configs = append(r.(*kmsg.CreateTopicsRequest).Topics[i].Configs, s)
			}
		}
		return nil, nil, false
	})
	c.ControlKey(int16(kmsg.DescribeConfigs), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		answer := r.ResponseKind().(*kmsg.DescribeConfigsResponse)
		for _, resource := range r.(*kmsg.DescribeConfigsRequest).Resources {
			got := kmsg.NewDescribeConfigsResponseResource()
			got.ResourceType, got.ResourceName = resource.ResourceType, resource.ResourceName
			for name, value := range settings[resource.ResourceName] {
				s := kmsg.NewDescribeConfigsResponseResourceConfig()
				s.Name, s.Value = name, kmsg.StringPtr(value)
				got.Configs = append(got.Configs, s)
			}
			answer.Resources = append(answer.Resources, got)
		}
		return answer, nil, true
	})
	return settings
}
