#!/bin/bash
# Trains a reward model with apad, then the same one with PyTorch and PEFT on the same pairs, and prints both accuracies on the
# pairs held back and both speeds of scoring 64 answers. Arguments go to `apad reward train`. Settings by environment: APAD (binary),
# MODEL (GGUF), PAIRS (preference pairs).
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:?the GGUF file of the model}
pairs=${PAIRS:?the file of preference pairs}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/peer

if ! "$venv/bin/python" -c 'import torch, transformers, peft, gguf' 2>/dev/null; then
    echo "installing torch, transformers, peft and gguf to $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch transformers peft gguf
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$apad" reward train --model "$model" --pairs "$pairs" --out "$work/reward.gguf" --json "$@" > "$work/train.json"
"$apad" reward score --model "$model" --reward "$work/reward.gguf" --pairs "$pairs" --held-back --json > "$work/held.json"
# 32 pairs: 64 answers.
"$apad" reward score --model "$model" --reward "$work/reward.gguf" --pairs "$pairs" --held-back --limit 32 --json > "$work/speed.json"
"$venv/bin/python" benches/peft_reward.py --model "$model" --pairs "$pairs" --train "$work/train.json" | tail -n1 > "$work/peer.json"
python3 - "$work" <<'PYTHON'
import json, sys

held, speed, peer = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("held", "speed", "peer"))
print(f"accuracy on {held['pairs']} held-back pairs: apad {held['accuracy']:.3f}, peer {peer['accuracy']:.3f}")
ours, theirs = speed["tokens_per_second"], peer["speed"]["tokens"] / peer["speed"]["seconds"]
print(f"scoring 64 answers: apad {ours:.0f} tokens/s, peer {theirs:.0f}: {ours / theirs:.2f} times")
PYTHON
