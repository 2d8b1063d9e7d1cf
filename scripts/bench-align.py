#!/usr/bin/env python3
"""How the algorithms compare at equal distance from the initial model: the experiment behind docs/results/alignment.md.

For each task every algorithm is tuned by a search of its own, all of equal cost (the same number of settings, on a seed that is
not counted), then run on each of the seeds. Told is the reward where a run's KL first reaches 2, 5 and 10 nats a response
(means of five batches, interpolated), with a 95% interval over the seeds.

Stopped, it goes on where it was when it is started again. What a run measured at each batch is also kept in RECORDS
(benches/records), a file a run, which belongs to the repository: a study of days goes on on another machine, where what is
recorded under the same settings is not run again. Settings by environment: APAD (the binary), MODEL (name or file),
OUT (folder), TASKS (length reward), ALGORITHMS (apa-token apa-response ppo awr rloo), SEEDS (1,2,3,4,5), STEPS, SEARCH_STEPS,
BATCH, MAX_NEW, PROMPTS and PAIRS (JSON lines, .gz too; without PROMPTS the demo's instructions; PAIRS for the task `reward`),
JOBS (runs at once, a thread each), PLAN (1: only say what would be run).

With the word `control` (make check-control) it asks instead whether learning as it is by default goes wrong on any seed: simulated
raters who like 90% of the answers, a fifth of whose thumbs say the opposite. It fails where a seed's last tenth of batches was
rewarded worse than its first tenth, or a batch was measured over the budget.
"""

import gzip
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def setting(name, default):
    return os.environ.get(name) or default


APAD = setting("APAD", os.path.join(ROOT, "target/release/apad"))
MODEL = setting("MODEL", "smollm2-135m-instruct")
OUT = setting("OUT", "runs/align")
TASKS = setting("TASKS", "length reward").split()
ALGORITHMS = setting("ALGORITHMS", "apa-token apa-response ppo awr rloo").split()
SEEDS = [int(s) for s in setting("SEEDS", "1,2,3,4,5").split(",")]
STEPS, SEARCH_STEPS = int(setting("STEPS", "60")), int(setting("SEARCH_STEPS", "20"))
BATCH, MAX_NEW = int(setting("BATCH", "16")), int(setting("MAX_NEW", "128"))
PROMPTS, PAIRS = setting("PROMPTS", ""), setting("PAIRS", "")
JOBS = int(setting("JOBS", "1"))
RECORDS = setting("RECORDS", os.path.join(ROOT, "benches/records"))
KEPT = ("step", "reward_mean", "kl_exact_per_response", "kl_step", "skipped")
SEARCH_SEED = 100
TARGETS = (2.0, 5.0, 10.0)
WINDOW = 5
# The default of train.kl_budget.
BUDGET = 10.0
# Student's t, two-sided 95%, by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

# Six settings each. Limits of the trainer stay as they are by default, but for the budget, which has to let runs reach ten nats.
LIMITS = ["--kl-budget", "20"]
RATES = ["1e-4", "3e-4", "1e-3"]
SPACE = {
    "apa-token": [["--algorithm", "apa", "--credit", "token", "--lambda", x, "--lr", r] for x in ("0.1", "1") for r in RATES],
    "apa-response": [
        ["--algorithm", "apa", "--credit", "response", "--nats-per-reward", x, "--lr", r] for x in ("4", "10") for r in RATES
    ],
    "ppo": [["--algorithm", "ppo", "--ppo-kl-target", x, "--lr", r] for x in ("6", "12") for r in RATES],
    "awr": [["--algorithm", "awr", "--lambda", x, "--lr", r] for x in ("1", "0.5") for r in RATES],
    "rloo": [["--algorithm", "rloo", "--answers", "4", "--ppo-kl-target", x, "--lr", r] for x in ("6", "12") for r in RATES],
}


def say(text):
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def lines(path):
    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as file:
        return [line for line in file if line.strip()]


def write(path, text):
    with open(path + ".partial", "w") as file:
        file.write(text)
    os.replace(path + ".partial", path)


def apad(*args, log=None):
    env = {**os.environ, "APAD_SERVE_THREADS": "1", "APAD_TRAIN_THREADS": "1"}
    with open(log or os.devnull, "a") as err:
        done = subprocess.run([APAD, *args], env=env, stdout=subprocess.PIPE, stderr=err, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"apad {' '.join(args[:2])} ended with {done.returncode}; see {log}")
    return done.stdout


def prepare():
    """The prompts, and for the task `reward` two reward models of one half of the pairs each."""
    os.makedirs(OUT, exist_ok=True)
    prompts = os.path.join(OUT, "prompts.jsonl")
    if PROMPTS:
        write(prompts, "".join(lines(PROMPTS)))
    else:
        asked = lines(os.path.join(ROOT, "src/bin/apad/demo/prompts.txt"))
        system = {"role": "system", "content": "Answer in one short sentence."}
        rows = [json.dumps({"prompt": [system, {"role": "user", "content": line.strip()}]}) for line in asked]
        write(prompts, "\n".join(rows) + "\n")
    if "reward" not in TASKS:
        return
    if not PAIRS:
        sys.exit("the task `reward` needs PAIRS, a file of preference pairs")
    rows = lines(PAIRS)
    random.Random(0).shuffle(rows)
    for name, half in (("taught", rows[: len(rows) // 2]), ("judge", rows[len(rows) // 2:])):
        pairs, model = os.path.join(OUT, f"{name}.jsonl"), os.path.join(OUT, f"{name}.gguf")
        if not os.path.exists(model):
            write(pairs, "".join(half))
            say(f"reward model `{name}` from {len(half)} pairs")
            log = os.path.join(OUT, f"{name}.log")
            apad("reward", "train", "--model", MODEL, "--pairs", pairs, "--out", model, "--resume", log=log)


def reward_of(task):
    return "length:20" if task == "length" else "model:" + os.path.join(OUT, "taught.gguf")


def record(folder, seed):
    return os.path.join(RECORDS, os.path.relpath(folder, OUT).replace(os.sep, "-") + f"-seed-{seed}.jsonl")


def records(folder, seed):
    """What a run measured, a row a batch: from its folder, or from what was kept of it."""
    for path in (os.path.join(folder, f"seed-{seed}", "metrics.jsonl"), record(folder, seed)):
        if os.path.exists(path):
            with open(path) as file:
                return [row for row in map(json.loads, (line for line in file if line.endswith("\n"))) if "step" in row]
    return []


def settings_of(task, flags, limits):
    """What makes runs comparable, as the first line of a record."""
    return {"model": os.path.basename(MODEL), "task": task, "flags": [*flags, *limits], "batch": BATCH, "max_new": MAX_NEW}


def recorded(task, flags, limits, folder, seed, steps):
    """Whether a run was kept, under these settings."""
    path = record(folder, seed)
    if not os.path.exists(path):
        return False
    with open(path) as file:
        head = json.loads(file.readline())
    return {k: head.get(k) for k in settings_of(task, flags, limits)} == settings_of(task, flags, limits) and len(
        records(folder, seed)) >= steps


def keep(task, flags, limits, folder, seed):
    os.makedirs(RECORDS, exist_ok=True)
    version = subprocess.run([APAD, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    rows = [{k: row[k] for k in KEPT if row.get(k) is not None} for row in records(folder, seed)]
    rows = [{**settings_of(task, flags, limits), "made_by": version}, *rows]
    write(record(folder, seed), "".join(json.dumps(row) + "\n" for row in rows))


def run(task, flags, folder, seed, steps, limits=LIMITS):
    """One run, or the rest of it."""
    if recorded(task, flags, limits, folder, seed, steps):
        return
    go_on(task, flags, folder, seed, steps, limits)
    keep(task, flags, limits, folder, seed)


def go_on(task, flags, folder, seed, steps, limits):
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    log = folder + ".log"
    if os.path.exists(os.path.join(folder, "run.json")):
        if len(records(folder, seed)) < steps:
            apad("train", "--resume", folder, "--steps", str(steps), log=log)
        return
    # bf16 is what it is trained in, and halves the time of sampling.
    apad("train", "--model", MODEL, "--set", "serve.type=bf16", "--prompts", os.path.join(OUT, "prompts.jsonl"),
         "--reward", reward_of(task), *flags, *limits, "--seed", str(seed), "--steps", str(steps), "--batch", str(BATCH),
         "--max-new", str(MAX_NEW), "--checkpoint-every", "5", "--out", folder, log=log)


def all_of(jobs, what):
    """Runs jobs, JOBS at a time, and tells how far it is."""
    began = time.time()
    with ThreadPoolExecutor(JOBS) as pool:
        waiting = [pool.submit(run, *job) for job in jobs]
        for count, done in enumerate(as_completed(waiting), 1):
            done.result()
            left = (time.time() - began) / count * (len(jobs) - count)
            say(f"{what}: {count} of {len(jobs)} runs, about {left / 60:.0f} minutes left")


def curve(rows):
    """(KL, reward) of means of a few batches, in the order of the run."""
    points = [(r["kl_exact_per_response"], r["reward_mean"]) for r in rows
              if r.get("kl_exact_per_response") is not None and r.get("reward_mean") is not None]
    size = min(WINDOW, len(points))
    windows = [points[i:i + size] for i in range(len(points) - size + 1)] if size else []
    return [tuple(statistics.mean(p[k] for p in w) for k in (0, 1)) for w in windows]


def at(points, kl):
    """The reward where the distance first reaches `kl`; none where it never does."""
    before = None
    for point in points:
        if point[0] >= kl:
            if before is None or point[0] == before[0]:
                return point[1]
            share = (kl - before[0]) / (point[0] - before[0])
            return before[1] + share * (point[1] - before[1])
        before = point
    return None


def worth(rows):
    """What a setting is chosen by: the best reward within five nats."""
    points = curve(rows)
    reached = at(points, TARGETS[1])
    return max([r for kl, r in points if kl <= TARGETS[1]] + ([] if reached is None else [reached]), default=-math.inf)


def interval(values):
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f} (1)"
    n = len(values)
    half = T95.get(n - 1, 1.96) * statistics.stdev(values) / math.sqrt(n)
    return f"{statistics.mean(values):.2f} ± {half:.2f} ({n})"


def judged(folder, seed, name):
    """By the reward model that nobody trained against: how far the last batches' answers are above the first one's."""
    path = os.path.join(folder, f"seed-{seed}", "samples.jsonl")
    rows = [json.loads(line) for line in lines(path)]
    last = max(r["step"] for r in rows)
    means = []
    for part in ("first", "last"):
        pairs = f"{folder}.{name}-{seed}-{part}.jsonl"
        chosen = [r for r in rows if (r["step"] == 1 if part == "first" else r["step"] > last - WINDOW)]
        text = [json.dumps({"prompt": r["prompt"], "chosen": r["response"], "rejected": "I don't know."})
                for r in chosen if r["response"].strip()]
        write(pairs, "\n".join(text) + "\n")
        out = apad("reward", "score", "--model", MODEL, "--reward", os.path.join(OUT, "judge.gguf"), "--pairs", pairs,
                   "--json", log=folder + ".log")
        means.append(json.loads(out)["margin"]["mean"])
        os.remove(pairs)
    return means[1] - means[0]


def report(chosen):
    """The page: a table a task, and where its curves are."""
    text = ["# Reward at equal distance\n", f"`make bench-align`, model {os.path.basename(MODEL)}, {len(SEEDS)} seeds of {STEPS} "
            f"batches of {BATCH} answers, at most {MAX_NEW} tokens. KL over the whole vocabulary, nats a response; ± is a 95% "
            "interval over the seeds that got so far (their number). Means of five batches; the search's seed is not counted.\n"]
    for task in TASKS:
        names = [name for name in ALGORITHMS if (task, name) in chosen]
        folders = {name: [os.path.join(OUT, task, f"{name}-{seed}") for seed in SEEDS] for name in names}
        head = ["algorithm", "settings", "first", *(f"at {kl:g} nats" for kl in TARGETS), "last", "last KL", "most KL"]
        head += ["gain by the other judge"] if task == "reward" else []
        text += [f"## {task}\n", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name in names:
            runs = [(f, s, records(f, s)) for f, s in zip(folders[name], SEEDS)]
            runs = [(f, s, rows) for f, s, rows in runs if rows]
            curves = [curve(rows) for _, _, rows in runs]
            told = [[v for v in (at(points, kl) for points in curves) if v is not None] for kl in TARGETS]
            kls = [[r["kl_exact_per_response"] for r in rows if r.get("kl_exact_per_response") is not None] for _, _, rows in runs]
            most = [max(kl) for kl in kls if kl]
            cells = [name, " ".join(chosen[task, name][2:]), interval([rows[0]["reward_mean"] for _, _, rows in runs]),
                     *map(interval, told), interval([points[-1][1] for points in curves]),
                     interval([points[-1][0] for points in curves]), f"{max(most):.1f}" if most else "-"]
            if task == "reward":
                cells.append(interval([judged(f, s, name) for f, s, _ in runs]))
            text.append("| " + " | ".join(cells) + " |")
        existing = [f for name in names for f in folders[name] if os.path.exists(os.path.join(f, "run.json"))]
        if existing:
            pictures = os.path.join(OUT, task, "curves")
            apad("train", "--compare", *existing, "--out", pictures, log=os.path.join(OUT, "compare.log"))
            text.append(f"\n![Reward and distance]({task}/curves/curves.png)\n")
    write(os.path.join(OUT, "report.md"), "\n".join(text) + "\n")
    print("\n".join(text))
    say(f"the page is {os.path.join(OUT, 'report.md')}")


def control():
    """Default settings under skewed and noisy thumbs: a row a seed, and what went wrong."""
    flags = ["--thumbs-up", "0.9", "--flipped", "0.2"]
    say(f"{len(TASKS) * len(SEEDS)} runs of {STEPS} batches, {JOBS} at once")
    if setting("PLAN", ""):
        return
    prepare()
    jobs = [(task, flags, os.path.join(OUT, "control", f"{task}-{seed}"), seed, STEPS, []) for seed in SEEDS for task in TASKS]
    all_of(jobs, "control")
    faults = []
    print("| taste | seed | reward, first tenth | last tenth | last KL | most KL | most KL of a batch's step | skipped |")
    print("|---|---|---|---|---|---|---|---|")
    for task, _, folder, seed, _, _ in sorted(jobs, key=lambda job: (job[0], job[3])):
        rows = records(folder, seed)
        tenth = max(1, len(rows) // 10)
        first, last = (statistics.mean(r["reward_mean"] for r in part) for part in (rows[:tenth], rows[-tenth:]))
        kl = [r["kl_exact_per_response"] for r in rows if r.get("kl_exact_per_response") is not None]
        steps = [r["kl_step"] for r in rows if r.get("kl_step") is not None]
        print(f"| {task} | {seed} | {first:.3f} | {last:.3f} | {kl[-1]:.2f} | {max(kl):.2f} | {max(steps):.2f} | "
              f"{sum(1 for r in rows if r.get('skipped'))} |")
        if last < first:
            faults.append(f"{task}, seed {seed}: the reward fell from {first:.3f} to {last:.3f}")
        if max(kl) > BUDGET:
            faults.append(f"{task}, seed {seed}: {max(kl):.2f} nats a response, the budget is {BUDGET:g}")
    if faults:
        sys.exit("\n".join(faults))


def main():
    if sys.argv[1:] == ["control"]:
        return control()
    unknown = [name for name in ALGORITHMS if name not in SPACE] + [t for t in TASKS if t not in ("length", "reward")]
    if unknown:
        sys.exit(f"there is no {unknown[0]}, expected algorithms of {', '.join(SPACE)} and tasks of length, reward")
    search = [(task, flags, os.path.join(OUT, task, "search", f"{name}-{i}"), SEARCH_SEED, SEARCH_STEPS)
              for task in TASKS for name in ALGORITHMS for i, flags in enumerate(SPACE[name])]
    count = len(TASKS) * len(ALGORITHMS) * len(SEEDS)
    say(f"{len(search)} runs of {SEARCH_STEPS} batches to search, {count} of {STEPS} batches to compare, {JOBS} at once")
    if setting("PLAN", ""):
        return
    prepare()
    all_of(search, "search")
    chosen = {}
    for task in TASKS:
        for name in ALGORITHMS:
            tried = [(worth(records(f, SEARCH_SEED)), flags) for t, flags, f, _, _ in search
                     if t == task and os.path.basename(f).rsplit("-", 1)[0] == name]
            chosen[task, name] = max(tried, key=lambda pair: pair[0])[1]
            say(f"{task}, {name}: {' '.join(chosen[task, name])}")
    all_of([(task, chosen[task, name], os.path.join(OUT, task, f"{name}-{seed}"), seed, STEPS)
            for seed in SEEDS for task in TASKS for name in ALGORITHMS], "comparison")
    report(chosen)


if __name__ == "__main__":
    main()
