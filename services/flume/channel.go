package flume

import (
	"strconv"
	"strings"
)

// queueBounds writes the bounds of a queue: those of Flume's channels that mean the same.
func (c *converter) queueBounds(q *node, g *group) {
	for _, ch := range g.channels {
		if n, err := strconv.ParseInt(ch.value("overflowCapacity"), 10, 64); err == nil && n > 0 && strings.EqualFold(ch.Type(), "SPILLABLEMEMORY") {
			q.child("disk").plain("records", strconv.FormatInt(n, 10), "overflowCapacity; disk.bytes bounds the disk, 100GiB unless it says otherwise")
			ch.say("overflowCapacity", Carried, "buffer.queues.%s.disk.records", q.key)
		}
	}
}

func hasChild(n *node, key string) bool {
	for _, c := range n.children {
		if c.key == key {
			return true
		}
	}
	return false
}

// channelKeys are the keys of Flume's channels that a queue does not need.
var channelKeys = map[string]string{
	"capacity":                      "a queue is bounded by memory and disk, not by a number of events",
	"transactionCapacity":           "there are no transactions of events",
	"byteCapacity":                  "buffer.queues.NAME.memory.bytes; the default suits",
	"byteCapacityBufferPercentage":  "buffer.queues.NAME.memory.bytes; the default suits",
	"memoryCapacity":                "buffer.queues.NAME.memory; the default suits",
	"overflowCapacity":              "buffer.queues.NAME.disk.records",
	"overflowTimeout":               "spill_after; the default suits",
	"overflowDeactivationThreshold": "the window chooses when to spill",
	"avgEventSize":                  "bytes are counted",
	"keep-alive":                    "ingest waits as long as the queue is full",
	"checkpointDir":                 "buffer.data_dir holds everything",
	"dataDirs":                      "buffer.data_dir holds everything",
	"useDualCheckpoints":            "the queue needs no second checkpoint",
	"backupCheckpointDir":           "the queue needs no second checkpoint",
	"compressBackupCheckpoint":      "the queue needs no second checkpoint",
	"checkpointInterval":            "chosen by the buffer",
	"checkpointTimeout":             "chosen by the buffer",
	"maxFileSize":                   "chosen by the buffer",
	"minimumRequiredSpace":          "the buffer keeps a reserve of its own",
	"write-timeout":                 "chosen by the buffer",
	"use-fast-replay":               "the queue needs no replay",
	"fsyncPerTransaction":           "every group of writes is flushed to the disk",
	"fsyncInterval":                 "every group of writes is flushed to the disk",
	"use-log-replay-v1":             "the queue needs no replay",
	"checkpointOnClose":             "chosen by the buffer",
}

// channel says of the keys of a channel what nothing else said.
func (c *converter) channel(ch *Component) {
	if !c.queued[ch] {
		note := "it stays in Flume: no Kafka source fills it"
		switch {
		case c.onlyForeignSinks(ch):
			note = "it stays in Flume: none of its sinks is one of Spillway's"
		case isKafkaChannel(ch):
			note = "it stays in Flume: nothing in the agent reads it; Spillway can read its topic as a source"
		}
		for _, k := range ch.order {
			ch.say(k.name, NotNeeded, "%s", note)
		}
		return
	}
	t := strings.ToLower(ch.Type())
	queue := "it is a subscription of a queue, which spills from memory to disk and survives crashes"
	switch {
	case isKafkaChannel(ch):
		for _, name := range []string{"kafka.bootstrap.servers", "brokerList", "zookeeperConnect", "kafka.consumer.group.id", "groupId", "parseAsFlumeEvent", "type", "readSmallestOffset"} {
			if ch.has(name) && !ch.keys[name].used {
				ch.say(name, NotNeeded, "%s", queue)
			}
		}
		for name, note := range map[string]string{
			"defaultPartitionId": "it is about events that a source puts into the channel",
			"partitionIdHeader":  "it is about events that a source puts into the channel",
			"timeout":            "chosen by the service",
			"kafka.topic":        "the queue is on the buffer's disk, not in a topic",
			"topic":              "the queue is on the buffer's disk, not in a topic",
		} {
			if ch.has(name) && !ch.keys[name].used {
				ch.say(name, NotNeeded, "%s", note)
			}
		}
		c.consumerRest(ch)
	case t == "memory" || t == "file" || t == "spillablememory" || t == "org.apache.flume.channel.memorychannel" || t == "org.apache.flume.channel.file.filechannel" || t == "org.apache.flume.channel.spillablememorychannel":
		ch.say("type", Carried, "%s", queue)
	case t == "jdbc" || t == "pseudotxn":
		ch.say("type", Changed, "%s", queue)
	default:
		ch.say("type", Unsupported, "Flume has no channel of type %s and fails to start the agent; its class name, if it is one of yours, has no place here: %s", ch.Type(), queue)
	}
	for name, note := range channelKeys {
		if ch.has(name) && !ch.keys[name].used {
			ch.say(name, NotNeeded, "%s", note)
		}
	}
	for _, k := range ch.order {
		if !k.used && strings.HasPrefix(k.name, "encryption.") {
			ch.say(k.name, Unsupported, "the buffer does not encrypt its files: put data_dir on an encrypted file system")
		}
	}
}
