#!/bin/bash
# Fuzzes every entry point that takes bytes: fuzz.sh [TARGET...]. MINUTES (10) is the time of each. Builds with coverage in a folder of
# its own; needs no nightly Rust. A finding ends it, and leaves the input in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(request options schema template gguf model adapter engine)
coverage="-C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters
    -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares"
# Named, so that the flags are not those of build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$PWD/target}
# The versions of the library's own build.
cp ../Cargo.lock Cargo.lock
RUSTFLAGS="${FUZZ_RUSTFLAGS--C target-cpu=native --cfg fuzzing $coverage}" cargo build --release --target "$host"

for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" artifacts
    # A seed a line.
    if [ -e "seeds/$target.txt" ]; then split -l 1 "seeds/$target.txt" "corpus/$target/seed-"; fi
    "$CARGO_TARGET_DIR/$host/release/$target" "corpus/$target" -max_total_time=$((${MINUTES:-10} * 60)) -max_len=65536 -timeout=60 \
        -rss_limit_mb=4096 -artifact_prefix="artifacts/$target-" -print_final_stats=1
done
