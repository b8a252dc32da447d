// Package flume reads the configuration of an Apache Flume agent, says of every key what becomes
// of it, and writes the pipeline of Spillway that does the same.
//
// A file goes through four steps. Document (document.go) finds the properties in the input and
// names what is not Java's syntax. Agent (agent.go) applies Flume's own rules: which components
// are active, and which of them Flume itself drops. convert (convert.go and the files named after
// components) maps the active ones to sources, queues, subscriptions and deliveries. Report
// (report.go) holds the fate of each key.
//
// Facts about Flume are those of its releases 1.6 to 1.11: FlumeConfiguration, the classes of its
// Kafka and HDFS components, and its user guide.
package flume
