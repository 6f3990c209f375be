# Walden's two commands for people, `make test` and `make demo`, and their parts.
# They bring what they need: on Debian, with Rust, nothing else has to be there beforehand.

.DEFAULT_GOAL := help
.PHONY: help test demo postgres s3s-fs lint deny advisories fuzz bench

help:
	@echo 'make demo   archive, back up, lose a table and get it back, on a throwaway PostgreSQL'
	@echo 'make test   everything that guards the project: format, lints, fuzzing, unit and integration tests'
	@echo
	@echo 'make lint   cargo fmt --check, clippy and rustdoc, warnings being errors'
	@echo 'make deny   licences and sources of all dependencies (deny.toml); make advisories asks GitHub for known holes in them'
	@echo 'make bench  Walden beside pgBackRest and cp, the tables of docs/performance.md (SCALE=, SEGMENTS=, ROUNDS=)'
	@echo 'make fuzz   every parser, some seconds each, from its fixed corpus'
	@echo
	@echo 'WALDEN_TEST_PG=17 make test   runs the tests on PostgreSQL 17 alone (14,17: on these two)'
	@echo 'WALDEN_TEST_KEEP=1 make test  keeps the test folders in /tmp'

# The integration tests come last: what failed is then at the end of the output.
test: postgres s3s-fs lint fuzz
	cargo test --workspace --doc
	cargo test --workspace --all-targets --no-fail-fast

demo:
	integration/scripts/bring-postgres 17
	cargo build --release --package walden --bins
	deploy/demo/demo.sh

postgres:
	integration/scripts/bring-postgres

s3s-fs:
	integration/scripts/bring-s3 s3s-fs

lint:
	cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet

# Not a part of lint: cargo-deny is built once, which takes two minutes.
deny:
	"$$(integration/scripts/bring-deny)" --log-level warn check licenses sources bans

advisories:
	"$$(integration/scripts/bring-deny)" check advisories

fuzz:
	fuzz/run.sh 5

bench:
	integration/bench/run
