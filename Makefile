# `make` lists what there is. The tools that check and generate are pinned in .ci/tools.mod.
TOOL := go tool -modfile=.ci/tools.mod
STACK := deploy/stack/bin
KUBECONFORM := $(TOOL) kubeconform -strict -skip Certificate,Issuer,ScaledObject,TriggerAuthentication \
  -schema-location 'deploy/kubernetes/schemas/{{.ResourceKind}}{{.KindSuffix}}.json'

.PHONY: help build generate check-generated lint release-api test test-quick test-unit test-race test-apart test-e2e soak bench bench-scale demo stack-up stack-down compose-test sbom reproducible vulncheck clean

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

lint: ## gofmt, go vet, staticcheck, buf lint and breaking, kubeconform
	@unformatted=$$(gofmt -l services gen) && [ -z "$$unformatted" ] || { echo "not as gofmt writes it:" $$unformatted >&2; exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) buf lint
	@# The API of the last release is in the repository, so that a clone needs no tag and no network.
	$(TOOL) buf breaking --against .ci/api.binpb
	@# Kinds of cert-manager and KEDA are not Kubernetes' own, and have no schema here.
	$(KUBECONFORM) -ignore-filename-pattern 'kustomization.yaml|spillway.yaml|schemas/' deploy/kubernetes
	@# And what kubectl apply -k makes of them, by the patches of the overlays.
	@command -v kubectl >/dev/null || echo "NOT RUN: the overlays as they are applied, which needs kubectl" >&2; \
	for overlay in base overlays/production overlays/several-buffers overlays/several-on-kafka; do \
	  ! command -v kubectl >/dev/null || { set -x; mkdir -p bin; kubectl kustomize deploy/kubernetes/$$overlay >bin/applied.yaml && $(KUBECONFORM) bin/applied.yaml; } || exit 1; \
	done; rm -f bin/applied.yaml

release-api: ## notes the API of this commit as that of a release, which later ones must be compatible with
	$(TOOL) buf build --as-file-descriptor-set --exclude-source-info -o .ci/api.binpb

test: ## all tests but the soaks: test-race beside test-e2e, then test-apart
	@# Side by side: the end-to-end tests mostly wait. Each package prints its own verdict.
	@failed=0; $(MAKE) -s test-race & race=$$!; $(MAKE) -s test-e2e || failed=1; \
	wait $$race || failed=1; $(MAKE) -s test-apart || failed=1; exit $$failed

test-quick: ## three minutes: the unit tests but for those of test-apart, without -race, beside the ten most telling end-to-end tests
	@# Side by side: the end-to-end tests mostly wait. Each prints its own verdict.
	@go test -short -timeout 10m $$(go list ./... | grep -v /services/e2e) & unit=$$!; \
	(cd services/e2e && E2E_TIER=quick go test -count=1 -parallel 6 -timeout 15m); e2e=$$?; \
	wait $$unit && exit $$e2e

test-unit: test-race test-apart ## the tests that need nothing else running

test-race: ## those of the unit tests that may have data races, under the race detector
	@race=-race; command -v "$$(go env CC)" >/dev/null || { race=; \
	  echo "NOT RUN: the race detector, which needs a C compiler. On Debian: apt-get install gcc libc6-dev" >&2; \
	  [ "$$CI" != true ] || exit 1; }; \
	command -v promtool >/dev/null || echo "NOT RUN: the alerts' own tests, which need promtool. On Debian: apt-get install prometheus" >&2; \
	.ci/gotest standard-quiet "$$(go list ./... | grep -v /services/e2e)" $$race -shuffle=on -timeout 30m

test-apart: ## those of the unit tests that the race detector leaves out: models, figures and sizes
	@names=$$(grep -rh --include=*_test.go -B1 'race\.Apart(' services | sed -n 's/^func \(Test[A-Za-z0-9]*\)(.*/\1/p' | paste -sd '|'); \
	packages=$$(grep -rl --include=*_test.go 'race\.Apart(' services | xargs -n 1 dirname | sort -u | sed 's|^|./|'); \
	.ci/gotest standard-quiet "$$packages" -timeout 20m -run "^($$names)\$$"

test-e2e: ## the real processes with a real Kafka and a real HDFS (Java 17 and Maven)
	@# Six at a time also on two cores: the tests mostly wait.
	@E2E_TIER=default .ci/gotest testname ./services/e2e -count=1 -parallel 6 -timeout 60m

soak: ## an hour or more: long chaos and long outages on real parts, and thousands of seeds of the models
	cd services/e2e && E2E_TIER=soak E2E_ROUNDS=20 go test -count=1 -v -timeout 180m
	cd services/e2e && E2E_OUTAGE=5m go test -count=1 -v -timeout 30m -run '^TestBufferIsAwayWithALag$$'
	go test -count=1 -timeout 120m -run '^TestModel$$' ./services/buffer/queue -model.seeds 5000
	go test -count=1 -timeout 120m -run '^TestModel$$' ./services/delivery/filesink -model.seeds 1000

bench: ## the buffer's benchmarks in turn with a bare file and the peers; docs/performance.md has the figures
	for round in 1 2 3; do \
	  go test -run '^$$' -bench 'Buffer|BareFile' -benchtime 1000x ./services/buffer && \
	  (cd services/buffer/peers && go test -run '^$$' -bench . -benchtime 1000x .) || exit 1; done

bench-scale: ## what a queue of the largest size does, and how long its lock is held
	go test -run '^$$' -bench Scale -benchtime 1x ./services/buffer/queue

demo: build ## one minute of everything in one process, with an outage of the test Kafka in it
	bin/spillway dev --duration 60s --break-kafka 10s..30s

stack-up: ## a real Kafka and a real HDFS on this machine
	@$(STACK)/kafka-start
	@$(STACK)/hdfs-start 1

stack-down: ## stops them and removes their data
	@$(STACK)/kafka-stop --wipe
	@$(STACK)/hdfs-stop --wipe

compose-test: ## docker-compose.yml for real: records arrive, scale to 3, kill one; the cluster loses a buffer
	deploy/compose/test

sbom: build ## bin/spillway.cdx.json: what the binary is made of (CycloneDX)
	bin/spillway version --sbom >bin/spillway.cdx.json

reproducible: ## builds the committed program twice, from two places, and compares the bytes
	deploy/reproducible

vulncheck: ## known weaknesses of the dependencies that are called; VULNDB is a mirror of https://vuln.go.dev
	@# Not part of .ci/run: the database is on the network, and a new entry would fail a commit that did nothing wrong.
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 $(if $(VULNDB),-db $(VULNDB)) ./...

clean: ## removes what was built
	rm -rf bin
