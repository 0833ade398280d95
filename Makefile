# make run    install what is missing, build, boot the lab and give its prompt
# make test   everything: packages, format, lints, docs, all tests
# make help   the rest

CARGO ?= cargo
# An ordinary user's PATH lacks the directories of ip, nft and nginx on Debian.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help run build test lint bench deps real

help:
	@echo "make run     install what is missing, build, boot the default lab, give its prompt"
	@echo "make test    run everything that must pass: format, lints, docs, all tests"
	@echo "make build   build the release binaries into target/release"
	@echo "make lint    format, clippy, documentation, and the rules for dependencies"
	@echo "make bench   measure (see docs/benchmarks.md)"
	@echo "make deps    install the Debian packages that are missing; root only if any are"
	@echo "make real    install the real peers that packages hold: podman, kubectl, cnitool, the flannel CNI plugin"

run: build
	target/release/knetsim up

build: deps
	$(CARGO) build --release --workspace

# Binaries first: the end-to-end tests start them.
test: deps lint
	$(CARGO) build --workspace --bins --examples
	$(CARGO) test --workspace

lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
		$(CARGO) deny check bans licenses sources; \
	else \
		echo "SKIPPED: cargo deny (not installed; \`cargo install cargo-deny\` gets it)"; \
	fi

bench: build
	target/release/knetsim bench

deps:
	@scripts/deps

real:
	@scripts/real
