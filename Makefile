# Each target installs what it needs first (Debian packages, quietly), then builds, then does its work.
# `make demo` and `make test` need root: they make network namespaces and load BPF programs.

CARGO ?= cargo
# For building (BPF with clang, libelf for libbpf) and for running (nft); the tests look at hosts with ip and ethtool too.
PACKAGES := clang libelf-dev libbpf-dev zlib1g-dev pkg-config gcc make nftables iproute2 ethtool

# A server that is not ours and understands PROXY headers. It is not installed, only put there.
NGINX := $(CURDIR)/target/nginx

.PHONY: build demo test bench lint deps nginx clean

build: deps
	$(CARGO) build --release

demo: build nginx
	PATH="$$PATH:$(NGINX)" target/release/weir demo $(ARGS)

test: deps nginx
	PATH="$$PATH:$(NGINX)" $(CARGO) test --workspace --quiet

bench: deps
	$(CARGO) bench --package weir-benches

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
