# Each target installs what it needs first (Debian packages, quietly), then builds, then does its work.
# `make demo`, `make test` and `make bench-flood` need root: they make network namespaces and load BPF programs.

CARGO ?= cargo
# For building (BPF with clang, libelf for libbpf) and for running (nft); the tests look at hosts with ip and ethtool too.
PACKAGES := clang libelf-dev libbpf-dev zlib1g-dev pkg-config gcc make nftables iproute2 ethtool
# Tests take things from a running weir with other hands, and compare what it tells with what other tools do.
TEST_PACKAGES := bpftool iptables procps

# A server that is not ours and understands PROXY headers. It is not installed, only put there.
NGINX := $(CURDIR)/target/nginx

.PHONY: build demo test soak soak-kernel bench bench-steps bench-micro check-micro baseline-micro bench-flood bench-lists bench-nic bench-outage bench-relay test-nic nic-shell nic-cache lint deps nginx clean

build: deps
	$(CARGO) build --release

demo: build nginx
	PATH="$$PATH:$(NGINX)" target/release/weir demo $(ARGS)

# Most of them wait most of the time: two for each CPU.
test: deps nginx
	@.ci/packages $(TEST_PACKAGES)
	PATH="$$PATH:$(NGINX)" RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$((2 * $$(nproc)))} $(CARGO) test --workspace --quiet

# A million simulated connections (COUNT), or one of them again: make soak SEED=n
COUNT ?= 1000000
soak:
	$(CARGO) run --release --quiet --package weir-tests --bin soak -- $(if $(SEED),--seed $(SEED),$(COUNT))

# A thousand connections of a mebibyte each way over bad links, for each way in which weir carries them (or VARIANT).
soak-kernel: deps
	WEIR_SOAK=1 $(CARGO) test --release --package weir-control --test kernel_tcp -- --nocapture

# weir's roads, the kernel's forwarding, HAProxy and nginx side by side; the two come from Debian. ARGS="--runs 1 --quick" for a look.
bench: build nginx
	@.ci/packages haproxy
	$(CARGO) run --release --quiet --package weir-benches --bin weir-bench -- lab --nginx $(NGINX)/nginx $(ARGS)

# Single steps by criterion.
bench-steps: deps
	$(CARGO) bench --package weir-benches

# What single steps cost: nanoseconds, instructions (callgrind), allocations. ONLY=parse for some of them.
# In huge pages, where there are any: so does the gateway with its connections.
bench-micro:
	@.ci/packages valgrind
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(CARGO) run --release --quiet --package weir-micro -- $(ONLY)

# Whether a packet costs more instructions than it did; after a change that is worth it: make baseline-micro.
check-micro:
	@.ci/packages valgrind
	$(CARGO) run --release --quiet --package weir-micro -- --check benches/micro/baseline.json

baseline-micro:
	@.ci/packages valgrind
	$(CARGO) run --release --quiet --package weir-micro -- --save benches/micro/baseline.json

# A million names or prefixes: time to read and compile, memory, time of a lookup.
bench-lists: deps
	$(CARGO) run --release --quiet --package weir-benches --bin lists

bench-flood: build
	$(CARGO) run --release --package weir-benches --bin syn_flood -- $(ARGS)

# For how long traffic stops when weir is killed or hangs; ARGS="--load 60": how often a busy machine is taken for a hung weir.
bench-outage: build
	$(CARGO) run --release --quiet --package weir-benches --bin outage -- $(ARGS)

# The relay against HAProxy and nginx, where packets cost what they cost by themselves.
bench-relay:
	$(MAKE) bench ARGS="--contenders nginx,haproxy,relay,forwarding --single --moderated --json target/bench/relay.json $(ARGS)"

# A traffic generator and receiver for any box between two ports: ARGS="--tx DEV --rx DEV ..."; ARGS=--help tells the rest.
bench-nic: deps
	$(CARGO) run --release --quiet --package weir-benches --bin weir-bench -- nic $(ARGS)

# weir on the drivers of real NICs, which QEMU emulates: no hardware and no KVM is needed, but Debian's packages are. Not part of
# `make test`. ARGS="--only igb" for one driver; make nic-shell ARGS="--nic igb -- ip link" runs a command in such a guest.
NIC_CACHE := $(or $(WEIR_NIC_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/weir/nic)
NIC := $(CARGO) run --quiet --package weir-tests --bin nic --

test-nic: build nginx nic-cache
	$(NIC) matrix --cache $(NIC_CACHE) --save tests/nic/README.md $(ARGS)

nic-shell: build nginx nic-cache
	@$(NIC) shell --cache $(NIC_CACHE) $(ARGS)

nic-cache:
	@.ci/packages binutils
	@.ci/nic $(NIC_CACHE)

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	.ci/gates

deps:
	@.ci/packages $(PACKAGES)

nginx:
	@.ci/nginx $(NGINX)

clean:
	$(CARGO) clean
