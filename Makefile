# `make` lists what there is. The tools that check and generate are pinned in .ci/tools.mod.
TOOL := go tool -modfile=.ci/tools.mod
STACK := deploy/stack/bin

.PHONY: help build generate check-generated lint test test-unit test-e2e bench demo stack-up stack-down compose-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

build: ## bin/spillway
	go build -trimpath -o bin/spillway ./services/spillway

generate: ## gen/ anew from proto/
	rm -rf gen
	$(TOOL) buf generate

check-generated: ## fails when gen/ is not what proto/ yields
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && $(TOOL) buf generate -o "$$tmp" && \
	  { diff -r gen "$$tmp/gen" || { echo "gen/ is stale: run make generate and commit it" >&2; exit 1; }; }

lint: ## gofmt, go vet, staticcheck, buf lint
	@unformatted=$$(gofmt -l services gen) && [ -z "$$unformatted" ] || { echo "not as gofmt writes it:" $$unformatted >&2; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint

test: test-unit test-e2e ## all tests: the unit tests, then the real processes with a real Kafka and a real HDFS

test-unit: ## the tests that need nothing else running
	@race=-race; command -v "$$(go env CC)" >/dev/null || { race=; \
	  echo "NOT RUN: the race detector, which needs a C compiler. On Debian: apt-get install gcc libc6-dev" >&2; \
	  [ "$$CI" != true ] || exit 1; }; \
	set -x; go test $$race -shuffle=on -timeout 20m $$(go list ./... | grep -v /services/e2e)

test-e2e: ## the real processes with a real Kafka and a real HDFS (Java 17 and Maven)
	@# In its own directory go test shows what was not run; by package name it would just print ok.
	cd services/e2e && go test -count=1 -timeout 20m

bench: ## the buffer's benchmarks in turn with a bare file and the peers; docs/performance.md has the figures
	for round in 1 2 3; do \
	  go test -run '^$$' -bench 'Buffer|BareFile' -benchtime 1000x ./services/buffer && \
	  (cd services/buffer/peers && go test -run '^$$' -bench . -benchtime 1000x .) || exit 1; done

demo: build ## one minute of everything in one process, with an outage of the test Kafka in it
	bin/spillway dev --duration 60s --break-kafka 10s..30s

stack-up: ## a real Kafka and a real HDFS on this machine
	@$(STACK)/kafka-start
	@$(STACK)/hdfs-start 1

stack-down: ## stops them and removes their data
	@$(STACK)/kafka-stop --wipe
	@$(STACK)/hdfs-stop --wipe

compose-test: ## docker-compose.yml for real: records arrive, scale to 3, kill one
	deploy/compose/test

clean: ## removes what was built
	rm -rf bin
