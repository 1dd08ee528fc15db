# Each target installs what it needs first (Debian packages, quietly), then builds, then does its work.
# `make demo` and `make test` need root: they make network namespaces and load BPF programs.

CARGO ?= cargo
# For building (BPF with clang, libelf for libbpf) and for running (nft); the tests look at hosts with ip and ethtool too.
PACKAGES := clang libelf-dev libbpf-dev zlib1g-dev pkg-config gcc make nftables iproute2 ethtool

.PHONY: build demo test bench lint deps clean

build: deps
	$(CARGO) build --release

demo: build
	@.ci/nginx target/nginx
	PATH="$$PATH:target/nginx" target/release/weir demo $(ARGS)

test: deps
	$(CARGO) test --workspace --quiet

bench: deps
	$(CARGO) bench --package weir-benches

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	.ci/gates

deps:
	@.ci/packages $(PACKAGES)

clean:
	$(CARGO) clean
