# make demo   from nothing to an app served from inside a microVM
# make test   every test, real microVMs included
# make bench  the measurements of docs/performance.md
# make deb    a Debian package under target/debian
# make fuzz   a minute for each fuzz target, where there is a nightly toolchain

.PHONY: demo test bench deb fuzz check missing

demo: missing
	KEEP=$(KEEP) scripts/demo

test: missing
	scripts/test

bench: missing
	scripts/bench

fuzz: missing
	scripts/fuzz 60

deb: missing
	scripts/deb

check: missing
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	scripts/deny

missing:
	@scripts/install-missing
