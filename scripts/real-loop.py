#!/usr/bin/env python3
"""The loop on a base model, which neither chats nor ends by itself as `apad demo` wants it: a daemon answers questions, users who like
answers of one paragraph rate them, and it learns. Prints the mean rating of questions that nobody rated, before and after, with the
peak of memory and the seconds of each step as JSON; ends with 1 if that mean did not rise. Needs Python alone.

    scripts/real-loop.py --apad target/release/apad --model FILE --data FOLDER --batches 12
"""

import argparse
import concurrent.futures
import importlib
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

loop = importlib.import_module("gpu-loop")
TOKENS, LONGEST = 48, 1800


def rating(text):
    """1 for one paragraph, less for each line break, -1 for three."""
    return 1 - 2 * min(3, text.strip().count("\n")) / 3


def prompts(name):
    folder = pathlib.Path(__file__).resolve().parent.parent / "src/bin/apad/demo"
    return [f"Question: {line.strip()}\nAnswer:" for line in (folder / name).read_text().splitlines() if line.strip()]


def answer(client, prompt):
    done = client.json("POST", "/v1/completions", {"prompt": prompt, "max_tokens": TOKENS, "temperature": 1.0})
    return done["id"], rating(done["choices"][0]["text"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["apad", "model", "data"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--set", action="append", default=[])
    o = parser.parse_args()
    shutil.rmtree(o.data, ignore_errors=True)
    port = loop.free_port()
    command = [o.apad, "serve", "--model", o.model, "--data", o.data, "--listen", f"127.0.0.1:{port}"]
    for setting in o.set:
        command += ["--set", setting]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client, asked, held_back = loop.Client(port), prompts("prompts.txt"), prompts("held_back.txt")
    workers = concurrent.futures.ThreadPoolExecutor(4)
    ask = lambda prompt: answer(client, prompt)
    measure = lambda: statistics.mean(value for _, value in workers.map(ask, held_back * 3))
    try:
        loop.wait_for(daemon, client, time.monotonic() + 240)
        before, seconds, kl = measure(), [], None
        for batch in range(o.batches):
            mine = [asked[(16 * batch + i) % len(asked)] for i in range(16)]
            for name, value in workers.map(ask, mine):
                client.json("POST", "/v1/feedback", {"generation_id": name, "rating": value})
            until = time.monotonic() + LONGEST
            while True:
                trainer = client.json("GET", "/v1/status")["trainer"]
                if trainer["pending_ratings"] < 16 and trainer["state"] == "idle":
                    break
                if time.monotonic() > until:
                    raise RuntimeError(f"no step within {LONGEST} s: {trainer}")
                time.sleep(0.5)
            last = trainer.get("last") or {}
            seconds.append(last.get("seconds"))
            print(f"batch {batch + 1}: steps {trainer['steps']}, mean reward {last.get('mean_reward')}, "
                  f"KL {last.get('kl_per_response')}, {last.get('seconds')} s, {trainer.get('reason')}", file=sys.stderr, flush=True)
        after = measure()
        status = open(f"/proc/{daemon.pid}/status").read()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"before": before, "after": after, "steps": trainer["steps"], "seconds": seconds, "vm_hwm_mib": peak // 1024}))
        sys.exit(0 if after > before else "the mean did not rise")
    except RuntimeError as e:
        sys.exit(str(e))
    finally:
        loop.end(daemon)


if __name__ == "__main__":
    main()
