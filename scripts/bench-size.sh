#!/bin/bash
# The memory of one process that serves a model and trains on it: `apad serve`, four answers of 192 tokens to prompts of 64, rated,
# one step of the trainer, and an answer of what it learned. Prints a row of docs/results/sizes.md for each set of settings, in MiB:
# the peak of what is anonymous, the peak of the file's pages, each counted once however often it is mapped, with what is mapped of
# programs, and VmHWM, which counts mapped pages twice. Settings by environment: APAD (binary), MODEL (GGUF, or a known name), SETS
# (sets of settings, `;` between them: "serve.repack=false train.activation_mb=64; train.activation_mb=64"), DATA (a folder on a disk),
# DETAIL=1 (a line at the end of each stage). Arguments go to `apad serve`.
set -euo pipefail
cd "$(dirname "$0")/.."

apad=${APAD:-${CARGO_TARGET_DIR:-target}/release/apad}
model=${MODEL:-smollm2-135m-instruct}
[ -f "$model" ] || model=$("$apad" pull "$model")
folder=$(mktemp -d -p "${DATA:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$folder"' EXIT

APAD="$apad" MODEL="$model" FOLDER="$folder" SETS="${SETS:-}" python3 - "$@" <<'PYTHON'
import concurrent.futures, json, os, re, socket, subprocess, sys, threading, time, urllib.error, urllib.request

apad, model, folder = os.environ["APAD"], os.path.realpath(os.environ["MODEL"]), os.environ["FOLDER"]
detail = bool(os.environ.get("DETAIL"))

def mib(count):
    return f"{count / (1 << 20):,.0f}"

class Watch(threading.Thread):
    """Looks at the memory of a process until it ends."""

    def __init__(self, process):
        super().__init__(daemon=True)
        self.process, self.anonymous, self.mapped, self.highest, self.stage, self.of_stage = process, 0, 0, 0, "", 0

    def run(self):
        looked = told = 0
        while self.process.poll() is None:
            try:
                status = open(f"/proc/{self.process.pid}/status").read()
                field = lambda name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) << 10
                anonymous = field("RssAnon") + field("RssShmem")
                self.of_stage, self.highest = max(self.of_stage, anonymous), field("VmHWM")
                self.anonymous = max(self.anonymous, anonymous)
                if time.time() > looked + 2:
                    self.mapped, looked = max(self.mapped, self.pages()), time.time()
                if detail and time.time() > told + 60:
                    told = time.time()
                    print(f"  so far: anonymous {mib(self.anonymous)}, file {mib(self.mapped)}", file=sys.stderr, flush=True)
            except (OSError, TypeError):
                pass
            time.sleep(0.05)

    def pages(self):
        """Bytes of mapped files that are in memory: of the model's each page once, as the page map tells."""
        with open(f"/proc/{self.process.pid}/smaps") as table:
            lines = table.read().splitlines()
        others, present, page = 0, set(), os.sysconf("SC_PAGE_SIZE")
        with open(f"/proc/{self.process.pid}/pagemap", "rb") as pagemap:
            for line in lines:
                head = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+)\s*(.*)", line)
                if head:
                    begin, end, offset, inode = int(head[1], 16), int(head[2], 16), int(head[3], 16), head[4]
                    own, rss = head[5] == model, 0
                    if own:
                        pagemap.seek(begin // page * 8)
                        table = memoryview(pagemap.read((end - begin) // page * 8)).cast("Q")
                        present.update(offset // page + i for i, entry in enumerate(table) if entry >> 63)
                elif line.startswith("Rss:"):
                    rss = int(line.split()[1]) << 10
                elif line.startswith("Anonymous:") and inode != "0" and not own:
                    others += rss - (int(line.split()[1]) << 10)
        return others + len(present) * page

    def enter(self, stage):
        if detail and self.stage:
            print(f"  {self.stage}: anonymous at most {mib(self.of_stage)}, file {mib(self.pages())}", flush=True)
        self.stage, self.of_stage = stage, 0

def measure(settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [part for setting in settings.split() for part in ("--set", setting)]
    data = os.path.join(folder, "data")
    subprocess.run(["rm", "-rf", data], check=True)
    command = [apad, "serve", "--model", model, "--data", data, "--listen", at, "--set", "train.auto=false",
               "--set", "reward.user_share=1", "--set", "gate.examine=false", "--set",
               "serve.request_seconds=0", *flags, *sys.argv[1:]]
    log = os.path.join(folder, "log")
    process = subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    watch = Watch(process)
    watch.start()

    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://{at}{path}", data), timeout=36000) as answer:
            return json.loads(answer.read())

    def until_idle():
        while process.poll() is None:
            try:
                state = ask("/v1/trainer")
                if state["state"] == "idle":
                    return
                if state["state"] in ("off", "unsupported"):
                    sys.exit(f"the trainer is {state['state']}: {state.get('reason')}")
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.2)
        sys.exit(open(log).read())

    def answer(i):
        prompt = [100 + (37 * i + 11 * j) % 900 for j in range(64)]
        body = {"prompt": prompt, "max_tokens": 192, "ignore_eos": True, "seed": i}
        return ask("/v1/completions", body)["id"]

    try:
        watch.enter("loading")
        until_idle()
        watch.enter("four answers")
        began = time.time()
        with concurrent.futures.ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(answer, range(4)))
        speed = 4 * 192 / (time.time() - began)
        for i, identity in enumerate(answers):
            ask("/v1/feedback", {"generation_id": identity, "rating": 1 if i % 2 else -1})
        watch.enter("the step")
        began = time.time()
        outcome = ask("/v1/trainer/step", {})
        seconds, load = time.time() - began, open("/proc/loadavg").read().split()[0]
        watch.enter("an answer of what was learned")
        answer(5)
        watch.enter("")
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.read().decode()}\n{open(log).read()}")
    finally:
        process.terminate()
        process.wait()
    if detail:
        print(f"  {json.dumps(outcome)[:300]}")
    together = watch.anonymous + watch.mapped
    print(f"| {os.path.basename(model)} | {settings or 'by default'} | {mib(watch.anonymous)} | {mib(watch.mapped)} | {mib(together)} "
          f"| {together / 1e9:.2f} GB | {mib(watch.highest)} | {seconds:.1f} | {speed:.1f} | {load} |", flush=True)

print("| model | settings | anonymous | file | together | | VmHWM | seconds a step | tokens/s of four answers | load |")
print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
for settings in os.environ["SETS"].split(";"):
    measure(settings.strip())
PYTHON
