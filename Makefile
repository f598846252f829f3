# The only entry point: `make` lists the targets. CI runs `make test`, and nothing that is not in here.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Where things are installed; DESTDIR is for packagers.
PREFIX ?= /usr/local
DESTDIR ?=
# Seeds of the simulator in `test` and `sim`, hosts of its large swarm. SEED runs one seed alone.
SEEDS ?= 0..20
SEED ?=
HOSTS ?= 1000
# Scenarios of the testbed, and options for its programs; all scenarios if none is named.
SCENARIO ?=
TESTBED_ARGS ?=
BENCH_ARGS ?=
# Of `cargo build`.
BUILD_ARGS ?=
# Fuzz targets (all if none is named) and seconds for each.
FUZZ ?=
FUZZ_TIME ?= 10

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export RUSTDOCFLAGS ?= -D warnings

# Programs that the targets below call, each with the Debian package that brings it: for building, and for the labs with
# real agents and VMs.
NEEDED := cc:build-essential g++:build-essential
LAB_NEEDED := ip:iproute2 ss:iproute2 ping:iputils-ping iperf3:iperf3 nft:nftables ssh:openssh-client \
	dig:bind9-dnsutils socat:socat qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils nbdinfo:libnbd-bin \
	cpio:cpio dropbearkey:dropbear-bin genisoimage:genisoimage

# What the overlay must never link: runtimes, sockets, entropy.
IMPURE := ^(tokio|mio|async-.*|smol|socket2|libp2p.*|quinn.*|rustls|getrandom|rand|rand_core|nix|rustix)$$

.PHONY: help
help: ## This list
	@echo "make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installs the packages of $(1) whose programs are missing. QEMU's parts must be of one version, also where a newer part
# of another suite is installed already.
define install-missing
	@packages=; for pair in $(1); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" > /dev/null || packages+=" $${pair##*:}"; \
	done; \
	packages=$$(tr ' ' '\n' <<< "$$packages" | sort -u | xargs); \
	if [ -n "$$packages" ]; then \
		if ! command -v apt-get > /dev/null; then \
			echo "Install the equal of these Debian packages first: $$packages" >&2; exit 1; \
		elif [ "$$(id -u)" = 0 ]; then root=env; \
		elif command -v sudo > /dev/null; then root='sudo env'; \
		else echo "As root: apt-get install $$packages" >&2; exit 1; fi; \
		echo "Installing $$packages"; \
		$$root DEBIAN_FRONTEND=noninteractive apt-get -q update; \
		case " $$packages " in *' qemu-'*) \
			version=$$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ { print $$2 }'); \
			packages+=" qemu-system-x86=$$version qemu-utils=$$version --allow-downgrades";; \
		esac; \
		$$root DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$packages; \
	fi
endef

.PHONY: deps
deps: ## Install what building needs (Debian packages; asks sudo if you are not root)
	$(call install-missing,$(NEEDED))
	@command -v $(CARGO) > /dev/null || { \
		echo "Rust is missing: see https://rustup.rs, or install the packages rustup and rustc of Debian 13" >&2; exit 1; }

.PHONY: lab-deps
lab-deps: deps ## Install what the labs of `testbed`, `demo` and `bench` need: QEMU, iperf3, ssh and others
	$(call install-missing,$(LAB_NEEDED))

# Whoever runs something of the workspace builds all of it: a part would ask for other features of dependencies, and
# build those once more. So would all of it without the tests, where they are built already: `test` gives BUILD_ARGS.
.PHONY: build
build: deps ## The agent, the simulator and the testbed, for development
	$(CARGO) build --workspace --locked $(BUILD_ARGS)

.PHONY: release
release: deps ## The agent, optimised
	$(CARGO) build --release --locked -p virtuoso

.PHONY: check
check: deps ## Format, lints, documentation, purity of the overlay, licences (with cargo-deny)
	$(CARGO) fmt --all --check
	$(CARGO) fmt --all --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) doc --workspace --no-deps --locked
	@$(CARGO) tree --locked --manifest-path fuzz/Cargo.toml > /dev/null
	@tree=$$($(CARGO) tree --locked -p virtuoso-overlay -e normal --prefix none); \
	if impure=$$(awk '{ print $$1 }' <<< "$$tree" | sort -u | grep -E '$(IMPURE)'); then \
		echo "The overlay must not depend on:" $$impure >&2; exit 1; \
	fi
	@if ! $(CARGO) deny --version > /dev/null 2>&1; then \
		echo "cargo-deny is not installed: licences and advisories were not checked"; \
	else \
		$(CARGO) deny --locked --log-level error check bans licenses sources; \
		if $(CARGO) deny --locked --log-level off fetch db > /dev/null 2>&1; then \
			$(CARGO) deny --locked --log-level error check --disable-fetch advisories; \
		else \
			echo "The advisory database is out of reach: advisories were not checked"; \
		fi; \
	fi
	@echo "check: passed"

.PHONY: unit
unit: lab-deps ## Unit, property and tidy tests of all crates
	@mkdir -p $(TARGET)
	@status=0; $(CARGO) test --workspace --locked --no-fail-fast 2>&1 | tee $(TARGET)/unit.log || status=$$?; \
	awk '/^test result:/ { passed += $$4; failed += $$6; ignored += $$8 } \
		END { printf "unit: %d passed, %d failed, %d ignored\n", passed, failed, ignored }' $(TARGET)/unit.log; \
	exit $$status

.PHONY: sim
sim: sim-seeds ## Simulate swarms: SEEDS=0..20 or SEED=7 with faults, and HOSTS=1000 for the figures of a large one
	$(if $(SEED),,$(TARGET)/debug/virtuoso-sim scale --hosts $(HOSTS))

.PHONY: sim-seeds
sim-seeds: build
	$(TARGET)/debug/virtuoso-sim run $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))
	@echo "sim: $(if $(SEED),seed $(SEED),seeds $(SEEDS)) passed"

.PHONY: testbed
testbed: lab-deps build ## Scenarios with real agents in network namespaces: SCENARIO="vlan move-tcp", all by default
	$(TARGET)/debug/testbed run $(TESTBED_ARGS) $(SCENARIO)

.PHONY: test
test: ## All that CI runs: packages, check, unit tests, simulator, testbed
	@$(MAKE) lab-deps
	@$(MAKE) check
	@$(MAKE) unit
	@$(MAKE) sim-seeds testbed BUILD_ARGS=--all-targets
	@grep '^test result' $(TARGET)/unit.log | awk '{ passed += $$4 } END { print "unit: " passed " passed" }'
	@echo "test: everything passed"

.PHONY: demo
demo: lab-deps build ## Three hosts on this machine become one pool and run VMs, step by step
	$(TARGET)/debug/testbed demo

.PHONY: bench
bench: lab-deps ## Figures as a table and JSON: BENCH_ARGS="join --rounds 5" for a part; takes minutes
	$(CARGO) build --release --locked -p virtuoso -p virtuoso-testbed -p virtuoso-sim
	$(TARGET)/release/virtuoso-sim scale --hosts $(HOSTS)
	$(TARGET)/release/virtuoso-sim moves
	$(TARGET)/release/testbed bench $(BENCH_ARGS)

.PHONY: bench-peers
bench-peers: lab-deps ## Install the other tunnels that `bench` measures: from Debian, and with cargo (minutes)
	$(call install-missing,tincd:tinc fastd:fastd openvpn:openvpn openssl:openssl edge:n2n supernode:n2n)
	$(CARGO) install --locked vpncloud
	$(CARGO) install --locked quincy-client quincy-server quincy-identity

.PHONY: profile
profile: lab-deps ## A flame graph of an agent that carries TCP: BENCH_ARGS="--streams 4"
	$(call install-missing,perf:linux-perf)
	@command -v inferno-flamegraph > /dev/null || $(CARGO) install --locked inferno
	$(CARGO) build --release --locked -p virtuoso -p virtuoso-testbed
	$(TARGET)/release/testbed profile $(BENCH_ARGS)

.PHONY: soak
soak: lab-deps ## Two agents at full rate for ten minutes; fails if their memory grows: BENCH_ARGS="--seconds 60"
	$(CARGO) build --release --locked -p virtuoso -p virtuoso-testbed
	$(TARGET)/release/testbed soak $(BENCH_ARGS)

.PHONY: fuzz
fuzz: deps ## Fuzz the decoders: FUZZ="nd ticket" FUZZ_TIME=60, all for 10 s each by default
	fuzz/run $(FUZZ_TIME) $(FUZZ)

.PHONY: install
install: ## Install what `make release` built: PREFIX=/usr/local; binary, manual, completions, systemd unit, user
	@test -x $(TARGET)/release/virtuoso || { echo "Run 'make release' first" >&2; exit 1; }
	install -D -m 755 $(TARGET)/release/virtuoso $(DESTDIR)$(PREFIX)/bin/virtuoso
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	$(TARGET)/release/virtuoso man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(TARGET)/release/virtuoso completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/virtuoso
	$(TARGET)/release/virtuoso completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_virtuoso
	$(TARGET)/release/virtuoso completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/virtuoso.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/|$(PREFIX)/|' dist/virtuoso.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/virtuoso.service
	install -D -m 644 dist/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/virtuoso.conf
	install -D -m 644 dist/agent.toml $(DESTDIR)$(PREFIX)/share/doc/virtuoso/agent.toml
	install -D -m 644 dist/resolved.conf $(DESTDIR)$(PREFIX)/lib/systemd/resolved.conf.d/virtuoso.conf
	@if [ -z '$(DESTDIR)' ] && [ "$$(id -u)" = 0 ]; then \
		getent passwd virtuoso > /dev/null || \
			useradd --system --user-group --home-dir /var/lib/virtuoso --shell /usr/sbin/nologin virtuoso; \
		if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	fi

.PHONY: clean
clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf fuzz/target
