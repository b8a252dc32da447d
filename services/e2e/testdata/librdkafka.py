# produce BROKER TOPIC PARTITIONS: writes "PARTITION NUMBER" records, numbered in each partition, until stdin ends; prints how
# many each partition got. consume BROKER TOPIC: prints the values of a topic, partition after partition.
import sys, threading, time
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

command, broker, topic = sys.argv[1:4]
if command == "produce":
    count = int(sys.argv[4])
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    failures = []
    producer = Producer({"bootstrap.servers": broker, "enable.idempotence": True, "compression.type": "zstd", "linger.ms": 20,
                         "message.timeout.ms": 300000, "reconnect.backoff.max.ms": 500, "log_level": 1})
    number = 0
    while not ended.is_set():
        for _ in range(100):
            for p in range(count):
                while True:
                    try:
                        producer.produce(topic, value=b"%d %d" % (p, number), partition=p, on_delivery=lambda e, m: e and failures.append(e))
                        break
                    except BufferError:
                        producer.poll(0.1)
            number += 1
        producer.poll(0)
        time.sleep(0.05)
    if producer.flush(120) or failures:
        sys.exit("not all was produced: %s" % failures[:3])
    print(*[number] * count)
else:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "librdkafka", "enable.auto.commit": False, "isolation.level": "read_committed",
                         "enable.partition.eof": True})
    for p in sorted(consumer.list_topics(topic, timeout=30).topics[topic].partitions):
        consumer.assign([TopicPartition(topic, p, 0)])
        while True:
            m = consumer.poll(30)
            if m is not None and m.error() and m.error().code() == KafkaError._PARTITION_EOF:
                break
            if m is None or m.error():
                sys.exit("partition %d: %s" % (p, m and m.error()))
            print(m.value().decode())
    consumer.close()
