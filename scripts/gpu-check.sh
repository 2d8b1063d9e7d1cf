#!/bin/bash
# Checks the trainer and the server on a machine with a GPU, from what scripts/gpu-kit.sh made, within ten minutes. Prints a table:
# every operation and the tests against the CPU; speed and memory of an update beside PyTorch + PEFT, in turns; one loop with
# answers, ratings and swaps. Needs the driver, Python with PyTorch, transformers and PEFT, and CUDA's libraries (PyTorch brings
# them). Ends with 1 if anything failed; failures are named.
#     scripts/gpu-check.sh [--device cuda:0|cpu] [--shapes "smollm2 1b 8b"] [--rounds 2] [--out FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda:0 shapes="" rounds=2 out=gpu-check
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2 ;;
        --shapes) shapes=$2 ;;
        --rounds) rounds=$2 ;;
        --out) out=$2 ;;
        *) sed -n 2,6p "$0" >&2; exit 2 ;;
    esac
    shift 2 || exit 2
done
# The CPU rehearses with the smallest alone.
[ -n "$shapes" ] || if [ "$device" = cpu ]; then shapes=smollm2; else shapes="smollm2 1b 8b"; fi
# Seconds for one measurement of an update.
if [ "$device" = cpu ]; then patience=600; else patience=120; fi
bin=$PWD/bin python=${PYTHON:-python3}
mkdir -p "$out"
table=$out/table.txt
: > "$table"
began=$SECONDS failures=0
say() { echo "[$((SECONDS - began)) s] $*" >&2; }
row() { printf '%-58s %s\n' "$1" "$2" | tee -a "$table"; }
failed() { failures=$((failures + 1)); row "$1" "FAILED: $2"; }

if [ "$device" != cpu ]; then
    # The libraries that the programs are linked to: those of CUDA, or those that PyTorch brings.
    places=$("$python" - <<'PYTHON'
import glob, site, sysconfig
roots = {sysconfig.get_path("purelib"), *site.getsitepackages()}
found = [p for r in roots for pattern in ("nvidia/cu13/lib", "nvidia/*/lib") for p in sorted(glob.glob(f"{r}/{pattern}"))]
print(":".join(dict.fromkeys(found + sorted(glob.glob("/usr/local/cuda*/lib64")))))
PYTHON
)
    export LD_LIBRARY_PATH=$places${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    missing=$(ldd "$bin/apad" | awk '/not found/ {print $1}' | paste -sd' ')
    [ -z "$missing" ] || { failed libraries "not found: $missing"; exit 1; }
    row card "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"
fi
row processor "$(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo), $(nproc) threads"

say "operations"
"$bin/apad" doctor --set "train.device=$device" --json > "$out/doctor.json" 2> "$out/doctor.log"
"$python" - "$out/doctor.json" <<'PYTHON' > "$out/operations.txt"
import json, sys
try:
    report = json.load(open(sys.argv[1]))
except ValueError:
    print("doctor\tFAILED: it printed no report; see doctor.log")
    sys.exit()
print(f"device\t{report['report']['device'].get('Ok') or 'FAILED: ' + report['report']['device']['Err']}")
for kernel in report["kernels"]:
    if kernel.get("fault") or kernel["name"].startswith(("gpu:", "training:")):
        gap = f"{kernel['gap']:.1e} from its plain form" if "gap" in kernel else ""
        print(f"{kernel['name']}\t{'FAILED: ' + kernel['fault'] if kernel.get('fault') else gap}")
PYTHON
while IFS=$'\t' read -r name value; do
    case $value in FAILED*) failures=$((failures + 1)) ;; esac
    row "$name" "$value"
done < "$out/operations.txt"

say "tests"
export APA_TEST_DEVICE=$device APA_GOLDEN_DIR=$PWD/golden
tests() { # name, program, filters
    local name=$1 program=$2
    shift 2
    if timeout 150 "$bin/$program" --test-threads 2 "$@" > "$out/$name.log" 2>&1; then
        row "tests: $name" "$(sed -nE 's/^test result: ok\. ([0-9]+) passed.*/\1 passed/p' "$out/$name.log")"
    else
        failed "tests: $name" "$(awk '/^test .*FAILED$/ {print $2}' "$out/$name.log" | paste -sd' '), see $name.log"
    fi
}
tests policy tests-lib policy::tests::agreement policy::tests::gradients policy::ops
tests trainer tests-it trainer:: trainer_control::
tests golden tests-it golden::

# Runs a command, with the most memory that was used on the card beyond what was before, in MiB.
measured() {
    local before log=$out/memory.log sampler status
    if [ "$device" = cpu ]; then "$@"; return; fi
    before=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits)
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 50 > "$log" &
    sampler=$!
    "$@"
    status=$?
    kill "$sampler" 2>/dev/null
    wait "$sampler" 2>/dev/null
    echo "$(($(sort -n "$log" | tail -n1) - before))" > "$out/memory.txt"
    return "$status"
}

update() { # label, command: appends its line of JSON with the card's memory to updates.jsonl, or tells why there is none
    local label=$1 status
    shift
    echo > "$out/memory.txt"
    measured timeout "$patience" "$@" > "$out/line.txt" 2> "$out/$label.log"
    status=$?
    case $status in
        0) ;;
        124) failed "update: $label" "no result within $patience s"; return ;;
        *) failed "update: $label" "ended with $status, $(tail -n1 "$out/$label.log")"; return ;;
    esac
    "$python" - "$out" "$label" <<'PYTHON' || failed "update: $label" "it printed no figures"
import json, sys
out, label = sys.argv[1:]
try:
    line = json.loads(open(f"{out}/line.txt").read().strip().splitlines()[-1])
except (ValueError, IndexError):
    sys.exit(1)
card = open(f"{out}/memory.txt").read().strip()
line.update(label=label, memory_mb=int(card) if card else line["peak_rss_mb"])
with open(f"{out}/updates.jsonl", "a") as file:
    file.write(json.dumps(line) + "\n")
PYTHON
}

: > "$out/updates.jsonl"
for shape in $shapes; do
    say "updates of $shape"
    model=$out/$shape.gguf
    [ -f "$model" ] || "$python" scripts/random-gguf.py --like "$shape" --tokenizer tokenizer.gguf "$model"
    sizes="--batch 4 --seq 256 --prompt 64 --updates 4"
    [ "$device" = cpu ] || sizes="--batch 16 --seq 512 --prompt 128 --updates 6"
    for _ in $(seq "$rounds"); do
        # shellcheck disable=SC2086
        update "$shape-apad" "$bin/apad" bench train --json --model "$model" --dtype bf16 --device "$device" $sizes
        # shellcheck disable=SC2086
        update "$shape-peer" "$python" benches/peft_step.py --shape "$shape" --device "$device" --dtype bf16 $sizes
    done
    # shellcheck disable=SC2086
    update "$shape-stored" "$bin/apad" bench train --json --model "$model" --dtype bf16 --device "$device" \
        --weights quantized $sizes
done
"$python" - "$out/updates.jsonl" $shapes <<'PYTHON' | tee -a "$table"
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
def median(label, key):
    values = [line[key] for line in lines if line["label"] == label]
    return statistics.median(values) if values else None
for shape in sys.argv[2:]:
    for key, unit in ("tokens_per_second", "tokens/s"), ("memory_mb", "MB"):
        ours, peer, stored = (median(f"{shape}-{who}", key) for who in ("apad", "peer", "stored"))
        ratio = f"{ours / peer:.2f} times" if ours and peer else "no pair"
        print(f"{'update of ' + shape + ', ' + unit:<58} apad {ours}, PyTorch + PEFT {peer}: {ratio}; as in the file {stored}")
PYTHON

say "one loop"
first=${shapes%% *}
if "$python" scripts/gpu-loop.py --apad "$bin/apad" --model "$out/$first.gguf" --device "$device" --data "$out/loop" \
    > "$out/loop.txt" 2> "$out/loop.log"; then
    row "one loop" "$(tail -n1 "$out/loop.txt")"
else
    failed "one loop" "$(tail -n1 "$out/loop.log")"
fi

row "time" "$((SECONDS - began)) s"
[ "$failures" = 0 ] || { row failures "$failures"; exit 1; }
