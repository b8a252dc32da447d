package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/kafkasink"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const checkClientID = "spillway-check"

// kafka tries the brokers of a part one by one, and calls f with a client of all of them.
func (x *connector) kafka(p *probes, brokers []string, t *config.TLS, s *config.SASL, topics []string, f func(*kafkaclient.Client, *kafkaclient.Cluster)) {
	var access kafkaclient.Access
	if !p.try("credentials", "correct the file that tls or sasl of this part names", func(context.Context) (string, error) {
		var err error
		access, err = kafkaclient.NewAccess(t, s, x.log)
		switch {
		case s != nil:
			return s.Mechanism, err
		case t != nil:
			return "TLS, without a login", err
		}
		return "plain text, without a login", err
	}) {
		return
	}
	defer access.Close()
	var cluster *kafkaclient.Cluster
	for _, broker := range brokers {
		client := kafkaclient.New([]string{broker}, checkClientID, access)
		p.try("broker "+broker, "check that the broker runs, that host and port are those of a listener for clients, that tls and sasl fit it, and that no firewall is between",
			func(ctx context.Context) (string, error) {
				c, err := client.Cluster(ctx, topics...)
				if err != nil {
					return "", err
				}
				if cluster != nil && c.ID != cluster.ID {
					return "", fmt.Errorf("it is of cluster %s, and a broker before it of %s", c.ID, cluster.ID)
				}
				cluster = c
				return "cluster " + c.ID, nil
			})
		client.Close()
	}
	if cluster == nil {
		return
	}
	x.mu.Lock()
	x.clusters[p.part] = cluster.ID
	x.mu.Unlock()
	client := kafkaclient.New(brokers, checkClientID, access)
	defer client.Close()
	f(client, cluster)
}

// source tries what an ingest does with a source, but for joining the group.
func (x *connector) source(p *probes, name string, s *config.Source) {
	var named []string
	var patterns bool
	for _, item := range s.Topics {
		if strings.HasPrefix(item, config.TopicPattern) {
			patterns = true
		} else {
			named = append(named, item)
		}
	}
	asked := named
	if patterns {
		asked = nil // all
	}
	x.kafka(p, s.Brokers, s.TLS, s.SASL, asked, func(client *kafkaclient.Client, cluster *kafkaclient.Cluster) {
		var topics []string
		p.try("topics", "create them, correct topics, or allow the principal Describe on them; until then they are not read", func(context.Context) (string, error) {
			for topic := range cluster.Topics {
				if readsTopic(s, topic) {
					topics = append(topics, topic)
				}
			}
			slices.Sort(topics)
			x.mu.Lock()
			x.topics[name] = topics
			x.mu.Unlock()
			missing := slices.DeleteFunc(slices.Clone(named), func(t string) bool { return slices.Contains(topics, t) })
			switch {
			case len(missing) > 0:
				return "", fmt.Errorf("there are no topics %s, or they may not be seen", strings.Join(missing, ", "))
			case len(topics) == 0:
				return "", doubt{errors.New("no topic matches")}
			}
			return some(topics), nil
		})
		if len(topics) == 0 {
			return
		}
		p.try("rights", "allow the principal Read on the topics, and DescribeConfigs, by which ingest sees how long Kafka keeps records", func(ctx context.Context) (string, error) {
			rights, err := client.Rights(ctx, topics, x.timeout)
			if err != nil {
				return "", err
			}
			unread := lacking(rights, func(r kafkaclient.Rights) bool { return r.Read })
			hidden := lacking(rights, func(r kafkaclient.Rights) bool { return r.DescribeConfigs })
			switch {
			case len(unread) > 0:
				return "", fmt.Errorf("may not read %s", some(unread))
			case len(hidden) > 0:
				return "", doubt{fmt.Errorf("may not see the retention of %s", some(hidden))}
			}
			return "may read", nil
		})
		p.try("group "+s.Group, "allow the principal Read and Describe on the group; give the source a group of its own", func(ctx context.Context) (string, error) {
			group := kafkaclient.NewGroup(client, kafkaclient.GroupConfig{Group: s.Group, Ours: "spillway-"})
			_, err := group.Committed(ctx, map[string][]int{topics[0]: {0}})
			switch {
			case errors.Is(err, kafka.GroupIdNotFound):
				return "may be made", nil
			case err != nil:
				return "", err
			}
			members, err := group.Members(ctx)
			switch {
			case errors.Is(err, kafka.GroupAuthorizationFailed):
				return "", doubt{err}
			case err == nil && len(members.Foreign) > 0:
				return "", doubt{fmt.Errorf("has members that are not of Spillway: %s", some(members.Foreign))}
			}
			return "may be used", err
		})
		x.leaders(p, client, topics)
	})
}

// leaders asks the leader of a partition of each topic for its offsets. The addresses of leaders
// are those that the brokers advertise, not those of the configuration.
func (x *connector) leaders(p *probes, client *kafkaclient.Client, topics []string) {
	p.try("leaders", "check that this machine resolves and reaches the addresses that the brokers advertise (advertised.listeners), and that every partition has a leader", func(ctx context.Context) (string, error) {
		n := min(len(topics), 100)
		for _, topic := range topics[:n] {
			if _, _, err := client.Offsets(ctx, topic, 0); err != nil {
				return "", fmt.Errorf("%s/0: %w", topic, err)
			}
		}
		return fmt.Sprintf("partition 0 of %d topics answers", n), nil
	})
}

// target tries what a delivery to Kafka needs. Nothing is produced.
func (x *connector) target(p *probes, d *config.Delivery) {
	k := d.Kafka
	routes := x.routes(p, d, func(ps *placers) (placeFunc, error) { return ps.target(d) })
	names := slices.Compact(slices.Sorted(maps.Values(routes)))
	x.kafka(p, k.Brokers, k.TLS, k.SASL, names, func(client *kafkaclient.Client, cluster *kafkaclient.Cluster) {
		if len(names) == 0 {
			return
		}
		var there []string
		p.try("target topics", "create them, or set missing_topic: create", func(context.Context) (string, error) {
			var missing []string
			for _, name := range names {
				if _, ok := cluster.Topics[name]; ok {
					there = append(there, name)
				} else {
					missing = append(missing, name)
				}
			}
			switch {
			case len(missing) == 0:
				return some(there), nil
			case k.MissingTopic == "create":
				return fmt.Sprintf("%s will be created", some(missing)), nil
			}
			return "", doubt{fmt.Errorf("there are no topics %s, or they may not be seen; missing_topic is %s", some(missing), k.MissingTopic)}
		})
		if len(there) == 0 {
			return
		}
		p.try("rights", "allow the principal Write on the topics", func(ctx context.Context) (string, error) {
			rights, err := client.Rights(ctx, there, x.timeout)
			if err != nil {
				return "", err
			}
			if denied := lacking(rights, func(r kafkaclient.Rights) bool { return r.Write }); len(denied) > 0 {
				return "", fmt.Errorf("may not write to %s", some(denied))
			}
			return "may write", nil
		})
		x.leaders(p, client, there)
	})
}

// loops says whether what a delivery produces would come back to it, as far as the file tells.
func (x *connector) loops(p *probes, d *config.Delivery) {
	if x.clusters[p.part] == "" {
		return // it was not reached
	}
	flows := &spillwayv1.Flows{}
	for name, s := range x.cfg.Ingest.Sources {
		if id := x.clusters["ingest.sources."+name]; id != "" {
			flows.Sources = append(flows.Sources, &spillwayv1.FlowSource{Queue: s.Queue, Source: name, Cluster: id, Wanted: s.Topics})
		}
	}
	for name, other := range x.cfg.Delivery {
		queue, sub, _ := strings.Cut(other.Subscription, "/")
		if q := x.cfg.Buffer.Queues[queue]; other.Kafka != nil && q != nil && q.Subscriptions[sub] != nil {
			flows.Targets = append(flows.Targets, &spillwayv1.FlowTarget{Subscription: other.Subscription, Cluster: x.clusters["delivery."+name],
				Topic: other.Kafka.Topic, Wanted: q.Subscriptions[sub].Topics})
		}
	}
	p.try("loops", "correct the topic of the delivery or the topics of the source, or, where it is meant, set allow_loop: true", func(context.Context) (string, error) {
		places := &placers{cfg: x.cfg}
		for name := range x.cfg.Ingest.Sources {
			for _, topic := range x.topics[name] {
				if !places.gets(d, topic) {
					continue
				}
				if reason := kafkasink.Loop(flows, d.Subscription, x.clusters["ingest.sources."+name], topic); reason != "" {
					return "", errors.New(reason)
				}
			}
		}
		return "none", nil
	})
}

// readsTopic says whether a source reads a topic.
func readsTopic(s *config.Source, topic string) bool {
	return slices.ContainsFunc(s.Topics, func(item string) bool {
		pattern, is := strings.CutPrefix(item, config.TopicPattern)
		if !is {
			return item == topic
		}
		re, err := config.CompileTopicPattern(pattern)
		return err == nil && re.MatchString(topic)
	})
}

// lacking returns the topics without a right, where that is known.
func lacking(rights map[string]kafkaclient.Rights, has func(kafkaclient.Rights) bool) (topics []string) {
	for _, name := range slices.Sorted(maps.Keys(rights)) {
		if r := rights[name]; r.Err != nil || r.Known && !has(r) {
			topics = append(topics, name)
		}
	}
	return topics
}

// some names the first of many.
func some(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
