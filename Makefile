# make help lists the targets.

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 30s
# Each test must hold in any order and under the race detector.
TESTFLAGS   ?= -race -shuffle=on

.DEFAULT_GOAL := help
.PHONY: help build test race lint bench demo matrix container fuzz cover tidy server

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## play the logout race on an in-process Redis
	go run ./cmd/tombstore demo

build: ## compile everything
	go build ./...

test: server ## run the tests on a real server, which is found, or installed (Debian, as root)
	go test $(TESTFLAGS) ./...

race: server ## run the tests ten times in random order under the race detector
	go test -race -shuffle=on -count=10 ./...

lint: ## vet, staticcheck, gofmt, go mod tidy, and luacheck if it is installed
	go vet ./...
	go run $(STATICCHECK) ./...
	@test -z "$$(gofmt -l .)" || { gofmt -l . && exit 1; }
	go mod tidy -diff
	@if command -v luacheck >/dev/null; then luacheck -q scripts; \
	else echo "luacheck is not installed (Debian: lua-check): the scripts were not linted"; fi

bench: server ## compare with plain commands on one server, in one run
	go test -run '^$$' -bench . -benchmem -timeout 30m .

matrix: ## run the tests on each server of TOMBSTORE_SERVERS (lines of name=command line), or on images with Docker
	@internal/redistest/matrix go test $(TESTFLAGS) -count=1 ./...

container: ## run the tests on a server in a container
	TOMBSTORE_SERVER=container go test $(TESTFLAGS) -count=1 .

fuzz: ## fuzz the record decoder and the keys, FUZZTIME each
	go test -run '^$$' -fuzz FuzzDecode -fuzztime $(FUZZTIME) .
	go test -run '^$$' -fuzz FuzzKey -fuzztime $(FUZZTIME) .

cover: server ## measure the coverage of the package: at least 90 %
	go test -coverprofile=coverage.out .
	@go tool cover -func=coverage.out | awk '/^total:/ { print "coverage " $$3; exit ($$3 + 0 < 90) }'

tidy: ## tidy go.mod and format
	go mod tidy
	gofmt -w .

server:
	@internal/redistest/server
