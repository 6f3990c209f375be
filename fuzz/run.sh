#!/usr/bin/env bash
# Fuzzes every target in fuzz_targets/ for some seconds, on stable Rust and without cargo-fuzz.
#   fuzz/run.sh [seconds for each target, 5 unless told] [target ...]
# Each starts from a copy of its folder under corpus/, so that a run changes nothing. FUZZ_SEED repeats a run.
# What breaks a target is left under artifacts/<target>/; give it to the target's program to see it again.
set -euo pipefail
cd "$(dirname "$0")"
export SECONDS_EACH=${1:-5} FUZZ_SEED=${FUZZ_SEED:-$((RANDOM * 32768 + RANDOM + 1))}
[ $# = 0 ] || shift
targets=("$@")
[ $# != 0 ] || for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done

host=$(rustc -vV | sed -n 's/^host: //p')
# The coverage that libFuzzer steers by. The triple is named so that build scripts are compiled without it.
export CARGO_TARGET_DIR=$PWD/target RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
cargo build --quiet --locked --release --target "$host" "${targets[@]/#/--bin=}"
export PROGRAMS=$CARGO_TARGET_DIR/$host/release

SCRATCH=$(mktemp -d)
export SCRATCH
trap 'rm -rf "$SCRATCH"' EXIT
fuzz() {
    mkdir -p "$SCRATCH/$1" "artifacts/$1"
    if [ -d "corpus/$1" ]; then cp "corpus/$1"/* "$SCRATCH/$1/"; fi
    if "$PROGRAMS/$1" -seed="$FUZZ_SEED" -max_total_time="$SECONDS_EACH" -max_len=8192 -timeout=10 -rss_limit_mb=1024 \
        -artifact_prefix="artifacts/$1/" "$SCRATCH/$1" >"$SCRATCH/$1.log" 2>&1; then
        echo "fuzz $1: $(sed -n 's/^Done \([0-9]* runs in [0-9]*\) .*/\1 s/p' "$SCRATCH/$1.log"), nothing broke (seed $FUZZ_SEED)"
    else
        tail -n 40 "$SCRATCH/$1.log" >&2
        echo "fuzz $1: broke with FUZZ_SEED=$FUZZ_SEED; the input is under fuzz/artifacts/$1" >&2
        return 1
    fi
}
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'fuzz {}'
