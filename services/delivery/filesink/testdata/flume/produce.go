// Command produce writes records.jsonl to a Kafka: produce BROKER.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	if err := produce(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func produce(broker string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 2, 1, nil, "originTopic"); err != nil {
		return err
	}
	for d := json.NewDecoder(os.Stdin); ; {
		var r struct {
			Partition  int32
			Offset     int64
			Timestamp  int64
			Key, Value []byte
			Tenant     *string
		}
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		rec := &kgo.Record{Topic: "originTopic", Partition: r.Partition, Timestamp: time.UnixMilli(r.Timestamp), Key: r.Key, Value: r.Value}
		if r.Tenant != nil {
			rec.Headers = []kgo.RecordHeader{{Key: "tenant", Value: []byte(*r.Tenant)}}
		}
		got, err := client.ProduceSync(ctx, rec).First()
		if err != nil {
			return err
		}
		if got.Offset != r.Offset {
			return fmt.Errorf("partition %d: offset %d, want %d: the topic is not new", r.Partition, got.Offset, r.Offset)
		}
	}
}
