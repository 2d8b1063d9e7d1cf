#!/bin/bash
# Compares the trainer with PyTorch and PEFT on this machine: runs both in turns, prints medians and ratios. Arguments go to
# both, as in `--batch 8 --seq 512`. Settings by environment: APAD (binary), MODEL (GGUF of SmolLM2-135M's shape, or a known
# name), PEER (the script to compare with), ROUNDS, DTYPE (bf16 or f32, of both).
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:-smollm2-135m-instruct}
peer=${PEER:-benches/peft_step.py}
rounds=${ROUNDS:-3}
dtype=${DTYPE:-bf16}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/peer

if ! "$venv/bin/python" -c 'import torch, transformers, peft' 2>/dev/null; then
    echo "installing torch, transformers and peft to $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch transformers peft
fi

results=$(mktemp)
trap 'rm -f "$results"' EXIT
run() {
    echo "load $(cut -d' ' -f1-3 /proc/loadavg)" >&2
    "$@" --dtype "$dtype" | tail -n1 | tee -a "$results"
}
for _ in $(seq "$rounds"); do
    run "$apad" bench train --json --model "$model" "$@"
    run "$venv/bin/python" "$peer" "$@"
done

"$venv/bin/python" - "$results" <<'PYTHON'
import json, statistics, sys

lines = [json.loads(line) for line in open(sys.argv[1])]
def median(ours, key):
    return statistics.median(l[key] for l in lines if (l["peer"] == "apad") == ours)
for key, unit in ("tokens_per_second", "tokens/s"), ("peak_rss_mb", "MB at the peak"):
    ours, peer = median(True, key), median(False, key)
    print(f"apad {ours:g}, peer {peer:g} {unit}: {ours / peer:.2f} times")
PYTHON
