#!/bin/bash
# Measures serving beside training, on one daemon: gaps between tokens of four streams without a training step, and while one step
# follows the other; and the steps alone and beside the streams. Settings by environment: APAD (binary), MODEL (GGUF, or a known
# name), THREADS (of serving and training), STREAMS, STEPS (of each kind). Arguments go to `apad serve`, as in `--set train.threads=1`.
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:-smollm2-135m-instruct}
[ -f "$model" ] || model=$("$apad" pull "$model")
at=127.0.0.1:8473
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

"$apad" serve --model "$model" --data "$folder/data" --listen "$at" --slots 8 --set serve.threads="${THREADS:-2}" \
    --set train.threads="${THREADS:-2}" --set train.auto=false --set reward.user_share=1 "$@" >"$folder/apad.log" 2>&1 &
AT="http://$at" APAD="$apad" STREAMS="${STREAMS:-4}" STEPS="${STEPS:-2}" python3 - <<'PYTHON'
import json, os, statistics, subprocess, threading, time, urllib.error, urllib.request

at, streams, steps = os.environ["AT"], os.environ["STREAMS"], int(os.environ["STEPS"])

def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(at + path, data), timeout=900) as answer:
        return answer.read()

def until(ready, what):
    for _ in range(600):
        try:
            if ready():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"{what} never came")

def trainer():
    return json.loads(ask("/v1/trainer"))

until(lambda: trainer()["state"] == "idle", "the trainer")

def rate(count):
    for i in range(count):
        body = {"messages": [{"role": "user", "content": f"Name {i + 2} things that are round."}], "max_tokens": 96, "seed": i}
        answer = json.loads(ask("/v1/chat/completions", body))
        ask("/v1/feedback", {"generation_id": answer["id"], "rating": 1 if i % 2 else -1})

def step():
    began, before = time.time(), trainer()
    json.loads(ask("/v1/trainer/step", {}))
    after = trainer()
    return {"seconds": time.time() - began, "waited": after["waited_seconds"] - before["waited_seconds"]}

def measure():
    command = [os.environ["APAD"], "bench", "serve", "--json", "--url", at, "--streams", streams, "--prefixes", "shared",
               "--requests", "3", "--tokens", "64", "--words", "64", "--forbid", "0,2"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

rate(2 * steps * 16)
alone = [step() for _ in range(steps)]
quiet = [measure() for _ in range(3)]

beside, busy, done = [], [], threading.Event()
def train():
    for _ in range(steps):
        beside.append(step())
    done.set()

thread = threading.Thread(target=train)
thread.start()
while not done.is_set():
    line = measure()
    # One that ran on after the last step would show a quiet machine.
    if not done.is_set() or not busy:
        busy.append(line)
thread.join()

def median(lines, *path):
    values = []
    for value in lines:
        for key in path:
            value = value[key]
        values.append(value)
    return statistics.median(values)

print(f"| {streams} streams | without training | beside training | ratio |\n|---|---|---|---|")
for name, path in [("gap p50, ms", ("gap_ms", "p50")), ("gap p95, ms", ("gap_ms", "p95")), ("gap p99, ms", ("gap_ms", "p99")),
                   ("first token p50, ms", ("first_token_ms", "p50")), ("tokens/s", ("tokens_per_second",))]:
    a, b = median(quiet, *path), median(busy, *path)
    print(f"| {name} | {a:.1f} | {b:.1f} | {b / a:.2f} |")
print("\n| training step | alone | beside the streams | ratio |\n|---|---|---|---|")
for key in ("seconds", "waited"):
    a, b = median(alone, key), median(beside, key)
    print(f"| {key} | {a:.1f} | {b:.1f} | {b / max(a, 1e-9):.2f} |")
print(f"\n{len(quiet)} measurements without, {len(busy)} beside {len(beside)} steps; errors {sum(l['errors'] for l in quiet + busy)}")
PYTHON
