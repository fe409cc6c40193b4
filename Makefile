# vOS. `make demo` shows it at work, `make test` runs every test; both set up
# what they need on Debian 12 with Go, as root.

GO       ?= go
PREFIX   ?= /usr/local
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/virtualizing-os/vos/internal/cli.version=$(VERSION)
# Packages whose tests trace processes, start servers or measure: without the
# race detector, as root, one at a time.
LIVE     := ./internal/kernel ./internal/tracee ./internal/handle ./internal/module ./internal/vex ./internal/testbed \
            ./internal/snapshot/... ./internal/live ./internal/bench/... ./internal/demo/...
PURE      = $(filter-out $(shell $(GO) list $(LIVE)),$(shell $(GO) list ./...))

export CGO_ENABLED = 0

.PHONY: all build deps lint test test-pure test-live soak bench corpus menu-picture refusals fuzz demo man install clean

all: build

build: ## bin/vos, one static binary
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/vos ./cmd/vos

deps: ## what tests and demo need from Debian; quick when it is there
	@scripts/deps.sh

lint: ## gofmt, go vet, staticcheck
	@test -z "$$(gofmt -l cmd internal)" || { gofmt -l cmd internal; echo 'run gofmt -w on these files' >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

test: deps lint test-pure test-live ## every test, real programs included

test-pure: ## no tracee: with the race detector
	CGO_ENABLED=1 $(GO) test -race -timeout 10m $(PURE)

test-live: build ## processes are stopped and changed: as root, one package at a time
	$(GO) test -p 1 -count 1 -timeout 25m $(LIVE)

soak: build ## thousands of cycles, 300 kills, heavy programs: an hour
	@scripts/deps.sh soak
	VOS_SOAK=1 $(GO) test -p 1 -count 1 -timeout 3h ./...

bench: deps build ## the figures: medians, spread, and the floor in the same run
	$(GO) run ./internal/bench/cmd

corpus: ## builds of Debian packages matched in pairs, into docs/corpus.md
	$(GO) run ./internal/module/match/corpus -out docs/corpus.md

menu-picture: build ## the menu of vos attach --menu in a real program, into docs/menu.png
	$(GO) test ./internal/live -count 1 -run 'TestMenu$$/galculator' -args -menu-picture $(CURDIR)/docs/menu.png

refusals: ## every reason for which vOS will not do something, into docs/refusals.md
	$(GO) run ./internal/refusals -out docs/refusals.md

fuzz: ## a minute for each fuzz target
	@for t in $$(grep -rho --include='*_test.go' 'func Fuzz[A-Za-z]*' internal | sort -u | sed 's/func //'); do \
	  p=$$(dirname $$(grep -rl --include='*_test.go' "func $$t(" internal | head -n 1)); \
	  $(GO) test ./$$p -run '^$$' -fuzz "^$$t\$$" -fuzztime 60s -fuzzminimizetime 5s || exit 1; done

demo: deps build ## a real nginx is corrupted and healed, its libz replaced, under load
	@$(GO) run ./internal/demo/cmd

man: build ## man pages and completions into build/
	bin/vos man build/man

install: build man
	install -D bin/vos $(DESTDIR)$(PREFIX)/bin/vos
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 build/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/

clean:
	rm -rf bin build
