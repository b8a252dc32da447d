// Package e2e tests the real binary, one process a service, against a real Kafka and a real HDFS:
// every record arrives, in HDFS exactly once whatever is killed with SIGKILL, and in the target
// Kafka exactly once when nothing fails.
//
// TestMain builds the binary, and starts a broker and an HDFS by deploy/stack/bin on ports and in
// a directory of their own. A child process of the test, the reaper, stops and removes them when
// the test process is gone, whatever became of it: the end, a timeout's panic, a signal. Each
// test has its own topics, consumer group, directory in HDFS, data directory and ports.
//
// Records are numbered. What arrived is counted from the files and the target topic themselves,
// never from Spillway's counters; those only say when to look.
//
// Kafka and HDFS need Java and Maven. Where they are missing nothing runs, which is said on
// stderr (go test shows it when it runs in this directory, as make test does, or with -v) and is
// a failure when CI=true. E2E_SEED repeats the moments of a run's kills. E2E_TIER=quick runs the
// ten most telling tests, E2E_TIER=soak those that take long; without it all others run
// (tiers_test.go). E2E_ROUNDS=20 has replicas killed for longer, E2E_OUTAGE=5m the buffer away
// for longer, and with E2E_LIBRDKAFKA=1 librdkafka writes and reads (pip install
// confluent-kafka).
package e2e
