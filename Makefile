# What each target does: make help

SHELL      := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX     ?= /usr/local
DESTDIR    ?=
SYSCONFDIR ?= /etc
UNITDIR    ?= $(PREFIX)/lib/systemd/system

CACHE      := $(CURDIR)/.cache
# The tag seccomp needs libseccomp, through cgo: the runtime's alone.
# nri_no_wasm leaves out an interpreter for plugins as modules, which costs memory when idle.
PURE_TAGS  := containers_image_openpgp,exclude_graphdriver_btrfs,nri_no_wasm
TAGS       := $(PURE_TAGS),seccomp
LDFLAGS    := -s -w -X main.version=$(VERSION)
export GOFLAGS := -buildvcs=false -tags=$(TAGS)
export OCID_CACHE := $(CACHE)

# Where the results of tests go; .ci/run reads them.
RESULTS    ?= $(CACHE)/results

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

.PHONY: env
env: ## for a shell that calls go itself: eval "$(make env)"
	@echo "export GOFLAGS='$(GOFLAGS)' OCID_CACHE='$(CACHE)'"

.PHONY: vet
vet: deps ## go vet, with the build tags that the module needs
	go vet ./...

.PHONY: build
build: deps ## bin/ocid, bin/ocid-monitor, bin/ocid-runtime
	@mkdir -p bin
	CGO_ENABLED=0 GOFLAGS='-buildvcs=false -tags=$(PURE_TAGS)' \
		go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ocid ./cmd/ocid
	CGO_ENABLED=0 GOFLAGS='-buildvcs=false -tags=$(PURE_TAGS)' \
		go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ocid-monitor ./cmd/ocid-monitor
	CGO_ENABLED=1 GOFLAGS='-buildvcs=false -tags=$(TAGS)' \
		go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ocid-runtime ./cmd/ocid-runtime

.PHONY: deps
deps: ## install the Debian packages that are missing, and say which
	@hack/deps

.PHONY: install
install: build ## binaries, systemd unit and socket, default configuration, man pages, completions
	install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/bin' bin/ocid bin/ocid-monitor bin/ocid-runtime
	install -d '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SYSCONFDIR)/ocid' '$(DESTDIR)$(PREFIX)/share/man/man1'
	sed 's|@bindir@|$(PREFIX)/bin|g' contrib/systemd/ocid.service > '$(DESTDIR)$(UNITDIR)/ocid.service'
	install -m 0644 contrib/systemd/ocid.socket '$(DESTDIR)$(UNITDIR)/ocid.socket'
	if [[ ! -e '$(DESTDIR)$(SYSCONFDIR)/ocid/ocid.toml' ]]; then \
		install -m 0644 contrib/ocid.toml '$(DESTDIR)$(SYSCONFDIR)/ocid/ocid.toml'; fi
	bin/ocid docs man '$(DESTDIR)$(PREFIX)/share/man/man1'
	install -d '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' \
		'$(DESTDIR)$(PREFIX)/share/zsh/site-functions' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	bin/ocid completion bash > '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ocid'
	bin/ocid completion zsh > '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ocid'
	bin/ocid completion fish > '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ocid.fish'

.PHONY: test
test: ## everything: build, unit, integration, critest, random kill, endurance, kubelet
	@hack/test unit integration critest randomkill endurance kubelet

.PHONY: test-unit test-integration test-critest test-randomkill test-endurance test-kubelet test-cluster test-vm
test-unit: ## unit tests under the race detector
	@hack/test unit
test-vm: ## integration and critest on cgroup v2 with systemd and AppArmor, in a virtual machine
	@hack/test vm
test-integration: ## the built binaries, driven over their socket as root
	@hack/test integration
test-critest: ## the part of critest that is expected to pass
	@hack/test critest
test-randomkill: ## 300 pod lifecycles with kill -9 at random
	@hack/test randomkill
test-kubelet: ## a real kubelet with static pods (builds it once: about five minutes)
	@hack/test kubelet
test-cluster: ## ocid under a whole control plane, one node and two (not in .ci/run)
	@hack/test cluster
test-endurance: ## 2,000 pods by ten clients, with faults, and the daemon as it was at the end
	@hack/test endurance

.PHONY: docs
docs: build ## the pages and the sample that are made from the code
	bin/ocid docs reference docs/reference
	bin/ocid config default > contrib/ocid.toml

.PHONY: images
images: deps ## the test images, into .cache
	go run ./test/cmd/images -cache '$(CACHE)/images'

.PHONY: demo
demo: build ## a web server in a pod, from nothing to nothing, each step with its time
	go run ./test/demo

.PHONY: bench
bench: build ## the benchmark on a private daemon: a table, and bench.json in .cache/results
	@mkdir -p '$(RESULTS)'
	go build -o '$(CACHE)/bin/ocid-bench' ./bench
	go run ./test/cmd/withocid -big -loop-root 20 -- '$(CACHE)/bin/ocid-bench' --json '$(RESULTS)/bench.json'

.PHONY: shell
shell: build ## a shell with crictl beside a private daemon
	@hack/tools crictl
	PATH='$(CACHE)/bin':$$PATH go run ./test/cmd/withocid -- bash

.PHONY: lint
lint: deps ## vet, and golangci-lint with staticcheck and gofumpt
	@hack/tools golangci-lint
	@$(MAKE) --no-print-directory vet
	GOLANGCI_LINT_CACHE='$(CACHE)/golangci' '$(CACHE)/bin/golangci-lint' run ./...
	GOLANGCI_LINT_CACHE='$(CACHE)/golangci' '$(CACHE)/bin/golangci-lint' fmt --diff

.PHONY: clean
clean: ## remove what was built; the caches of images and tools stay
	rm -rf bin '$(RESULTS)'
