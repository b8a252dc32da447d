package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// Headers of dead letters, as Kafka Connect names them (DeadLetterQueueReporter). Their values are
// texts.
const (
	headerTopic     = "__connect.errors.topic"
	headerPartition = "__connect.errors.partition"
	headerOffset    = "__connect.errors.offset"
	headerConnector = "__connect.errors.connector.name"
	headerTask      = "__connect.errors.task.id"
	headerStage     = "__connect.errors.stage"
	headerException = "__connect.errors.exception.class.name"
	headerMessage   = "__connect.errors.exception.message"
	// headerCluster has what Connect has no header for.
	headerCluster = "spillway.errors.cluster"

	// exceptionClass stands where Connect has the name of a Java class.
	exceptionClass = "spillway.DeadLetter"
)

const (
	// letterBytes is about the size of a batch of dead letters: what brokers take by default. A
	// larger record goes alone, up to maxLetterBytes.
	letterBytes, maxLetterBytes = 900 << 10, 40 << 20
	lettersPatience             = 30 * time.Second
)

// Letters writes dead letters to a topic of Kafka, with the reasons as headers.
type Letters struct {
	conf         config.DeadLetterTopic
	subscription string
	log          *slog.Logger
	access       kafkaclient.Access
	transport    *kafkaclient.Transport
	small, large *kafka.Writer
	trouble      *backoff.Trouble

	mu      sync.Mutex
	created bool
}

// NewLetters connects to nothing yet.
func NewLetters(c *config.DeadLetterTopic, subscription string, log *slog.Logger) (*Letters, error) {
	access, err := kafkaclient.NewAccess(c.TLS, c.SASL, log)
	if err != nil {
		return nil, err
	}
	l := &Letters{conf: *c, subscription: subscription, log: log, access: access, transport: access.Transport(c.Brokers, "spillway-dead-letters"),
		trouble: backoff.NewTrouble(log, "cannot write dead letters to Kafka; they wait, and are not settled", "dead letters are written to Kafka again")}
	l.small, l.large = l.writer(1000, letterBytes), l.writer(1, maxLetterBytes)
	return l, nil
}

func (l *Letters) writer(records int, bytes int64) *kafka.Writer {
	return &kafka.Writer{Addr: kafka.TCP(l.conf.Brokers...), Topic: l.conf.Topic, Transport: l.transport, Balancer: kafka.Murmur2Balancer{}, BatchSize: records,
		BatchBytes: bytes, BatchTimeout: 5 * time.Millisecond, RequiredAcks: kafka.RequireAll, MaxAttempts: 1, ReadTimeout: lettersPatience, WriteTimeout: lettersPatience}
}

// writing is one Write: what is left to be written, and what was refused.
type writing struct {
	*Letters
	refused int
}

// Write implements delivery.LetterWriter. A letter that the brokers refuse for itself, as too
// large for the topic, is left out: no attempt would do better, and the buffer keeps it.
func (l *Letters) Write(ctx context.Context, letters []delivery.Letter) (refused int, err error) {
	var small, large []kafka.Message
	for i := range letters {
		m := l.message(&letters[i])
		if messageSize(&m) < letterBytes {
			small = append(small, m)
		} else {
			large = append(large, m)
		}
	}
	w := &writing{Letters: l}
	for {
		err := l.create(ctx)
		if err == nil {
			small, err = w.attempt(ctx, l.small, small)
		}
		if err == nil {
			large, err = w.attempt(ctx, l.large, large)
		}
		if err == nil {
			l.trouble.Over()
			return w.refused, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err := l.trouble.Failed(ctx, err); err != nil {
			return 0, err
		}
	}
}

// attempt writes messages, and returns those that are to be tried again, with a reason.
func (w *writing) attempt(ctx context.Context, to *kafka.Writer, messages []kafka.Message) (left []kafka.Message, failure error) {
	if len(messages) == 0 {
		return nil, nil
	}
	err := to.WriteMessages(ctx, messages...)
	if err == nil {
		return nil, nil
	}
	var each kafka.WriteErrors
	if !errors.As(err, &each) {
		return messages, err
	}
	for i, err := range each {
		switch {
		case err == nil:
		case len(messages) == 1 && refused(err):
			w.refused++
			w.log.Error("the topic of dead letters takes no copy of a record; the buffer keeps it", "topic", w.conf.Topic, "bytes", messageSize(&messages[i]), "error", err)
		default:
			left, failure = append(left, messages[i]), err
		}
	}
	if len(left) > 1 && refused(failure) { // one of a batch spoils it: each alone
		all := left
		left, failure = nil, nil
		for _, m := range all {
			some, err := w.attempt(ctx, w.large, []kafka.Message{m})
			if left = append(left, some...); err != nil {
				failure = err
			}
		}
	}
	return left, failure
}

// refused says whether a broker's answer is about the record, so that it is the same each time.
func refused(err error) bool {
	for _, code := range []kafka.Error{kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp, kafka.InvalidMessage} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// create makes sure once that the topic is there.
func (l *Letters) create(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.created {
		return nil
	}
	topics, _, err := l.transport.Topics(ctx, []string{l.conf.Topic}, false)
	if err == nil {
		err = topics[l.conf.Topic].Err
	}
	if errors.Is(err, kafka.UnknownTopicOrPartition) {
		_, err = l.transport.CreateTopic(ctx, l.conf.Topic, -1, -1, lettersPatience)
	}
	l.created = err == nil
	return err
}

// message keeps key, value, headers and timestamp, and adds the headers that say what became of
// it.
func (l *Letters) message(d *delivery.Letter) kafka.Message {
	m := kafka.Message{Key: d.Record.Key, Value: d.Record.Value, Time: time.UnixMilli(d.Record.TimestampMs)}
	for _, h := range d.Record.Headers {
		m.Headers = append(m.Headers, kafka.Header{Key: string(h.Name), Value: h.Value})
	}
	stage := "TASK_PUT"
	if d.Transform {
		stage = "TRANSFORMATION"
	}
	for _, h := range [][2]string{
		{headerTopic, d.Source.GetTopic()}, {headerPartition, strconv.Itoa(int(d.Source.GetPartition()))}, {headerOffset, strconv.FormatInt(d.Offset, 10)},
		{headerConnector, l.subscription}, {headerTask, "0"}, {headerStage, stage}, {headerException, exceptionClass}, {headerMessage, d.Reason},
		{headerCluster, d.Source.GetCluster()},
	} {
		m.Headers = append(m.Headers, kafka.Header{Key: h[0], Value: []byte(h[1])})
	}
	return m
}

func messageSize(m *kafka.Message) int {
	n := len(m.Key) + len(m.Value) + 64
	for _, h := range m.Headers {
		n += len(h.Key) + len(h.Value) + 16
	}
	return n
}

// Close implements delivery.LetterWriter.
func (l *Letters) Close() error {
	err := errors.Join(l.small.Close(), l.large.Close())
	l.transport.CloseIdleConnections()
	l.access.Close()
	if err != nil {
		return fmt.Errorf("close the writer of dead letters: %w", err)
	}
	return nil
}
