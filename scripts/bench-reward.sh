#!/bin/bash
# Trains a reward model with apad, then the same one with PyTorch and PEFT on the same pairs, and prints both accuracies on pairs
# that neither has seen (a fifth of the file, by a hash of the prompt); then both speeds of scoring 64 of their answers, in turns.
# Arguments go to `apad reward train`. Settings by environment: APAD (binary), MODEL (GGUF), PAIRS (preference pairs), LIMIT (only
# the shortest so many pairs are learned from, by both), SPEED=1 (only the speeds).
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:?the GGUF file of the model}
pairs=${PAIRS:?the file of preference pairs}
venv=${XDG_CACHE_HOME:-$HOME/.cache}/apa/peer
python=$venv/bin/python

if ! "$python" -c 'import torch, transformers, peft, gguf' 2>/dev/null; then
    echo "installing torch, transformers, peft and gguf to $venv" >&2
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch transformers peft gguf
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" - "$pairs" "$work" "${LIMIT:-0}" <<'PYTHON'
import gzip, hashlib, json, sys

path, work, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
lines = (gzip.open if path.endswith(".gz") else open)(path, "rt").readlines()
def unseen(row):
    return int(hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()[:8], 16) % 5 == 0
def length(row):
    prompt = sum(len(message["content"]) + 20 for message in row["prompt"]) + 80
    return 2 * prompt + len(row["chosen"]) + len(row["rejected"])
rows = [(line, json.loads(line)) for line in lines]
train = [(length(row), line) for line, row in rows if not unseen(row)]
if limit and len(train) > limit:
    longest = sorted(train)[limit - 1][0]
    train = [pair for pair in train if pair[0] <= longest][:limit]
with open(f"{work}/train.jsonl", "w") as file:
    file.writelines(line for _, line in train)
with open(f"{work}/test.jsonl", "w") as file:
    file.writelines(line for line, row in rows if unseen(row))
PYTHON

if [ -z "${SPEED:-}" ]; then
    "$apad" reward train --model "$model" --pairs "$work/train.jsonl" --out "$work/reward.gguf" --json "$@" > "$work/train.json"
    "$apad" reward score --model "$model" --reward "$work/reward.gguf" --pairs "$work/test.jsonl" --json > "$work/ours.json"
    "$python" benches/peft_reward.py --model "$model" --pairs "$work/train.jsonl" --test "$work/test.jsonl" \
        --train "$work/train.json" | tail -n1 > "$work/peer.json"
fi
for round in 1 2 3; do
    "$apad" bench score --model "$model" --pairs "$work/test.jsonl" --json > "$work/speed-$round.json"
    "$python" benches/peft_reward.py --model "$model" --pairs "$work/test.jsonl" --speed --rounds 1 | tail -n1 > "$work/peer-speed-$round.json"
done
"$python" - "$work" <<'PYTHON'
import json, os, statistics, sys

def load(name):
    return json.load(open(f"{sys.argv[1]}/{name}.json"))
if os.path.exists(f"{sys.argv[1]}/peer.json"):
    train, ours, peer = load("train"), load("ours"), load("peer")
    print(f"learned from {train['manifest']['trained_pairs']} pairs, {len(train['manifest']['held_back'])} to choose the weights by")
    print(f"accuracy on {ours['pairs']} unseen pairs: apad {ours['accuracy']:.3f}, peer {peer['accuracy']:.3f}"
          f" (standard error {ours['accuracy_stderr']:.3f})")
rounds = [(load(f"speed-{n}"), load(f"peer-speed-{n}")) for n in (1, 2, 3)]
assert all(ours["tokens"] == peer["tokens"] for ours, peer in rounds), "the two scored different tokens"
ours, peer = (statistics.median(r[side]["tokens"] / r[side]["seconds"] for r in rounds) for side in (0, 1))
print(f"scoring {rounds[0][0]['answers']} answers of {rounds[0][0]['tokens']} tokens: apad {ours:.0f} tokens/s,"
      f" peer {peer:.0f} ({rounds[0][1]['fastest']}): {ours / peer:.2f} times")
PYTHON
