#!/bin/bash
# Builds on a machine without a GPU all that scripts/gpu-check.sh needs on one with a GPU: apad and the test programs with CUDA,
# scripts, and a model file that holds a tokenizer. In gpu-kit/, in pieces of at most 60 MB. Settings by environment: ARCHS, the
# cards' kinds that llama.cpp's kernels are built for (80;90), SERVE=0 to leave serving on the card out.
#     cat gpu-kit/part-* | tar -xJ && scripts/gpu-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."

out=gpu-kit
features=train-cuda
serve=${SERVE:-1}
[ "$serve" = 0 ] || features=cuda
. scripts/cuda-env.sh
# Serving's kernels are compiled for these cards; the trainer's are made for the card when it is there.
export CMAKE_CUDA_ARCHITECTURES=${ARCHS:-80;90} CUDA_COMPUTE_CAP=80
# A processor that any machine with such a card has.
export RUSTFLAGS="-C target-cpu=x86-64-v3 -L native=$CUDA_HOME/lib -L native=$CUDA_HOME/lib64"
if command -v ccache >/dev/null; then export CMAKE_CUDA_COMPILER_LAUNCHER=ccache; fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/gpu-kit

started=$SECONDS
cargo build --release --locked --features "$features"
echo "built in $((SECONDS - started)) s" >&2
tests=$(mktemp)
trap 'rm -f "$tests"' EXIT
cargo test --release --locked --features "$features" --lib --test it --no-run --message-format=json > "$tests"
program() { # the path of a test program by its target's name and kind
    python3 - "$tests" "$1" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    row = json.loads(line)
    if row.get("executable") and row["profile"]["test"] and row["target"]["name"] == sys.argv[2]:
        print(row["executable"])
PYTHON
}

rm -rf "$out"
mkdir -p "$out/kit/bin" "$out/kit/scripts" "$out/kit/benches"
cp "$CARGO_TARGET_DIR/release/apad" "$out/kit/bin/"
cp "$(program apa)" "$out/kit/bin/tests-lib"
cp "$(program it)" "$out/kit/bin/tests-it"
strip "$out"/kit/bin/*
cp scripts/gpu-check.sh scripts/gpu-loop.py scripts/random-gguf.py "$out/kit/scripts/"
cp benches/peft_step.py "$out/kit/benches/"
cp -r tests/golden "$out/kit/golden"
scripts/random-gguf.py --layers 1 --width 64 --heads 2 --kv-heads 1 --ff 64 --vocabulary 49152 --tied \
    --tokenizer "${MODEL:-$("$CARGO_TARGET_DIR/release/apad" pull smollm2-135m-instruct)}" "$out/kit/tokenizer.gguf"
tar -cJ -C "$out/kit" . | split -b 60000000 - "$out/part-"
ls -l "$out"/part-* >&2
