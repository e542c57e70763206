# make demo   from nothing to an app served from inside a microVM
# make test   every test, real microVMs included
# make bench  the measurements of docs/performance.md

.PHONY: demo test bench check missing

demo: missing
	KEEP=$(KEEP) scripts/demo

test: missing
	scripts/test

bench: missing
	scripts/bench

check: missing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	scripts/deny

missing:
	@scripts/install-missing
