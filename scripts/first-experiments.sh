#!/bin/bash
# APA, AWR and PPO on one model, one reward, the same prompts and critic: docs/results/first-experiments.md. For each algorithm the
# learning rate is the best of three on a seed of its own; then three other seeds. APA with another lambda takes the rate of
# APA with 0.1, so that one thing changes. A name that ends in @RATE takes that rate. Stopped, it goes on where it was when it is
# started again. Settings by environment: APAD (binary), MODEL, OUT (folder), STEPS and SEARCH_STEPS, RATES, SEEDS, ONLY (names of
# experiments, else all).
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:-smollm2-135m-instruct}
out=${OUT:-runs/first}
steps=${STEPS:-30}
search_steps=${SEARCH_STEPS:-15}
rates=${RATES:-1e-4 3e-4 1e-3}
seeds=${SEEDS:-1,2,3}
only=${ONLY:-apa-0.1 apa-0.1@1e-4 apa-1 apa-10 awr ppo}
search_seed=100

mkdir -p "$out"
# The demo's instructions. The system message keeps prompts and answers short, and the chat template from adding its own.
python3 - >"$out/prompts.jsonl" <<'PYTHON'
import json
for line in open("src/bin/apad/demo/prompts.txt"):
    asked = [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": line.strip()}]
    print(json.dumps({"prompt": asked}))
PYTHON

flags() {
    case ${1%@*} in
    apa-*) echo --algorithm apa --lambda "$(sed 's/^apa-//; s/@.*//' <<<"$1")" ;;
    awr) echo --algorithm awr --lambda 1 ;;
    ppo) echo --algorithm ppo ;;
    *) echo "there is no experiment $1" >&2 && exit 2 ;;
    esac
}

# run NAME FOLDER RATE SEEDS STEPS
run() {
    if [ -e "$2/run.json" ]; then
        "$apad" train --resume "$2" --steps "$5"
        return
    fi
    # shellcheck disable=SC2046 # the flags are words
    # The policy answers in bf16, in which it is trained too: sampling takes half the time.
    "$apad" train --model "$model" --set serve.type=bf16 --prompts "$out/prompts.jsonl" --reward length:20 $(flags "$1") --lr "$3" --seed "$4" \
        --steps "$5" --batch 16 --minibatch 8 --max-new 40 --checkpoint-every 5 --out "$2"
}

# The rate whose last batches were rewarded best, from the summaries of its three runs.
best() {
    local curves=$out/search/$1
    shift
    "$apad" train --compare "$@" --out "$curves" --json | python3 -c '
import json, sys
runs = json.load(sys.stdin)["experiments"]
print(max(runs, key=lambda run: run["seeds"][0]["last_reward"] or -9)["lr"])'
}

# rate_of NAME: writes it into NAME.rate.
rate_of() {
    local tried=() rate
    [ -e "$out/$1.rate" ] && return
    for rate in $rates; do
        run "$1" "$out/search/$1-$rate" "$rate" "$search_seed" "$search_steps"
        tried+=("$out/search/$1-$rate")
    done
    best "$1" "${tried[@]}" >"$out/$1.rate"
}

for name in $only; do
    if [[ $name == *@* ]]; then
        rate=${name#*@}
    else
        searched=$name
        [[ $name == apa-* ]] && searched=apa-0.1
        rate_of "$searched"
        rate=$(cat "$out/$searched.rate")
    fi
    echo "$name: learning rate $rate"
    run "$name" "$out/$name" "$rate" "$seeds" "$steps"
done

done_=()
for name in $only; do done_+=("$out/$name"); done
"$apad" train --compare "${done_[@]}" --out "$out"
"$apad" train --compare "${done_[@]}" --out "$out" --json >"$out/summary.json"
python3 - "$out/summary.json" >"$out/table.md" <<'PYTHON'
import json, statistics, sys

print("| experiment | lr | reward, first batch | last 5 batches (each seed) | KL k1, nats a response | seconds a run |")
print("|---|---|---|---|---|---|")
for run in json.load(open(sys.argv[1]))["experiments"]:
    seeds = run["seeds"]
    of = lambda key: [seed[key] for seed in seeds if seed[key] is not None]
    mean = lambda key: f"{statistics.mean(of(key)):.2f}" if of(key) else "-"
    each = ", ".join(f"{x:.2f}" for x in of("last_reward"))
    print(f"| {run['name']} | {run['lr']:g} | {mean('first_reward')} | {mean('last_reward')} ({each}) "
          f"| {mean('last_kl_k1_per_response')} | {mean('seconds')} |")
PYTHON
cat "$out/table.md"
