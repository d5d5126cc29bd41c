# make help lists the targets.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
# The adapters import their frameworks, so each is a module of its own.
MODULES     := . integration cmd/tombstore scsstore gorillastore gorillastore/gin gorillastore/hertz fiberstore fiber2store chistore beegostore goredis otelstore examples/twotabs internal/release
each         = failed=; for module in $(MODULES); do (cd $$module && $(1)) || failed="$$failed $$module"; done; \
               [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
# The race detector needs cgo, and that a C compiler.
RACE        := $(shell [ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null && echo -race)
# What only debuggers read is left out: that saves a sixth of what building takes.
BUILDFLAGS  := $(RACE) -gcflags=all=-dwarf=false -ldflags=-w
# Each test must hold in any order and under the race detector. Most of their time they wait, so more run at once than there are cores.
TESTFLAGS   ?= $(BUILDFLAGS) -shuffle=on -parallel=8
# Elsewhere than in CI the tests play fewer rounds, most of them on a server or on a cluster and not on both, few of the broken
# variants that show that a test can fail, and no failovers; and they play those of two modules at a time. What most modules need is
# built before, or two would build it at once.
SHORT        = $(if $(CI),,-short)
JOBS        ?= $(if $(CI),1,2)
# A program under the race detector waits a second before it ends; tests end many.
export GORACE ?= atexit_sleep_ms=20
# Everything is built anew for another system, which takes minutes.
SYSTEMS     ?= windows darwin
# What takes long to build and is not needed is left out: gin's MsgPack.
TAGS        := nomsgpack
ALLTAGS     := container,e2e
gotest       = go test -tags "$(TAGS)"

.DEFAULT_GOAL := help
.PHONY: help build test race lint bench demo matrix faults soak model container fuzz cover tidy server races e2e vet release-check release

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## play the logout race on an in-process Redis
	go run -C cmd/tombstore . demo

build: ## compile everything
	@$(call each,go build -o /dev/null ./...)

test: server ## run the tests on a real server, which is found, or installed (Debian, as root); with CI=true all of them
	@[ -n "$(RACE)" ] || echo "no C compiler: the tests run without the race detector"
	@$(if $(filter .,$(MODULES)),go list -export -test -tags "$(TAGS)" $(BUILDFLAGS) ./... >/dev/null)
	@$(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) $(MODULES:%=test/%)

$(MODULES:%=test/%): test/%:
	@cd $* && $(gotest) -vet=off $(SHORT) $(TESTFLAGS) ./...

race: server ## run the tests ten times in random order, under the race detector if there is a C compiler
	@$(call each,$(gotest) $(TESTFLAGS) -count=10 ./...)

lint: ## vet, staticcheck, gofmt, go mod tidy, and luacheck if it is installed
	@$(call each,go vet -tags $(ALLTAGS) ./... && go run $(STATICCHECK) -tags $(ALLTAGS) ./... && go mod tidy -diff)
	@test -z "$$(gofmt -l .)" || { gofmt -l . && exit 1; }
	@if command -v luacheck >/dev/null; then luacheck -q scripts; \
	else echo "luacheck is not installed (Debian: lua-check): the scripts were not linted"; fi

bench: server ## compare with plain commands on one server, in one run
	$(gotest) -run '^$$' -bench . -benchmem -timeout 30m .
	cd integration && go run -tags "$(TAGS)" ./bench -write ../docs

races: server ## play every race of every framework ROUNDS times (1,000), at each moment and with random timing
	cd integration && ROUNDS=$(or $(ROUNDS),1000) $(gotest) -count=1 -timeout 2h -v -run 'TestMatrix|TestRandom|TestRenewals|TestDoubleLogins|TestTwoLogins|TestLogoutEverywhere|TestCasdoor|TestMigration' .

e2e: server ## play the race in a real browser, with two tabs (needs Chromium)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	{ apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends chromium >/dev/null; }
	cd examples/twotabs && go test -tags "e2e,$(TAGS)" -count=1 .

faults: server ## break things for FAULTS_DURATION each, on each server of TOMBSTORE_SERVERS, and write the table of docs/faults.md
	@internal/redistest/faults

soak: server ## keep two stores busy for SOAK while faults happen
	cd integration && SOAK=$(or $(SOAK),1m) $(gotest) -count=1 -v -timeout 0 -run 'TestSoak$$' ./faults/soak

model: ## let spin go through the model of docs/model (Debian: spin)
	@docs/model/check

matrix: ## run the tests on each server of TOMBSTORE_SERVERS (lines of name=command line), or on images with Docker
	@internal/redistest/matrix go test $(TESTFLAGS) -count=1 ./...

container: ## run the tests on a server in a container
	TOMBSTORE_SERVER=container go test $(TESTFLAGS) -count=1 .

fuzz: server ## fuzz the record decoder, the keys and the adapters' cookies, FUZZTIME each
	$(gotest) -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) .
	$(gotest) -run '^$$' -fuzz FuzzKey -fuzztime $(FUZZTIME) .
	cd integration && $(gotest) -run '^$$' -fuzz FuzzCookie -fuzztime $(FUZZTIME) ./faults/hostile

cover: server ## measure the coverage of the package: at least 90 %
	$(gotest) -parallel=8 -coverprofile=coverage.out .
	@go tool cover -func=coverage.out | awk '/^total:/ { print "coverage " $$3; exit ($$3 + 0 < 90) }'

vet: ## vet everything, for another system with GOOS
	@$(call each,go vet -tags "$(TAGS)" ./...)

release-check: ## check what a release needs: of VERSION, or of what is not released yet; the API is compared with BASE
	@$(call each,go mod tidy -diff)
	@for system in $(SYSTEMS); do GOOS=$$system $(MAKE) --no-print-directory vet || exit 1; done
	@internal/release/vulnerabilities $(MODULES)
	@internal/release/api $(filter-out integration examples/% internal/%,$(MODULES))
	@cd internal/release && go run . $(VERSION)

release: ## tag all modules of HEAD as VERSION, after what release-check does
	@$(MAKE) --no-print-directory release-check
	@cd internal/release && go run . -tag $(VERSION)

tidy: ## tidy go.mod and format
	@$(call each,go mod tidy)
	gofmt -w .

server:
	@internal/redistest/server
