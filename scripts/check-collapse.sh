#!/bin/bash
# Trains candidates without any limit, as two of three seeds of docs/results/first-experiments.md collapsed (APA, lambda 0.1,
# learning rate 1e-3, advantages whitened), and has the daemon's examination judge each: all must be refused before anybody sees
# them. Settings by environment: APAD, MODEL, OUT, SEEDS, STEPS. Stopped, it goes on where it was when it is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/collapse}
mkdir -p "$out"
python3 - >"$out/prompts.jsonl" <<'PYTHON'
import json
for line in open("src/bin/apad/demo/prompts.txt"):
    if line.strip():
        asked = [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": line.strip()}]
        print(json.dumps({"prompt": asked}))
PYTHON
adapters=
for seed in ${SEEDS:-1 2 3}; do
    run=$out/seed-$seed
    if [ -e "$run/run.json" ]; then
        "$APAD" train --resume "$run" --steps "${STEPS:-30}"
    else
        "$APAD" train --model "$MODEL" --set serve.type=bf16 --prompts "$out/prompts.jsonl" --reward length:20 --algorithm apa \
            --lambda 0.1 --lr 1e-3 --whiten true --kl-step 0 --kl-budget 0 --kl-samples 0 --seed "$seed" --steps "${STEPS:-30}" \
            --batch 16 --minibatch 8 --max-new 40 --checkpoint-every 5 --out "$run"
    fi
    adapters+=" $(realpath "$run/seed-$seed/adapter.gguf")"
done
APA_TEST_MODEL=$MODEL APA_COLLAPSED=$adapters cargo test --release --locked --test it measure_collapsed -- --ignored --nocapture
