#!/usr/bin/env python3
"""The loop on one machine: a daemon answers four streams without a pause, its answers are rated, and it swaps to what it learned
under them. Prints a line of figures; ends with 1 and a reason if an answer failed or no version came. Needs Python alone.

    scripts/gpu-loop.py --apad target/release/apad --model FILE --device cuda:0 --data FOLDER
"""

import argparse
import http.client
import json
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

STREAMS, SWAPS, LONGEST = 4, 2, 240


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Client:
    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, json.dumps(body) if body is not None else None, {"content-type": "application/json"})
        return connection.getresponse()

    def json(self, method, path, body=None):
        response = self.ask(method, path, body)
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {text[:200]}")
        return json.loads(text)

    def stream(self, prompt, gaps):
        """One streamed answer: its id, its version; the times between its pieces go to `gaps`."""
        body = {"prompt": prompt, "max_tokens": 48, "temperature": 1.0, "stream": True}
        response = self.ask("POST", "/v1/completions", body)
        if response.status != 200:
            raise RuntimeError(f"an answer: {response.status} {response.read()[:200]}")
        last, name, version, done = None, None, None, False
        for line in response:
            line = line.strip()
            if line == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: "):
                piece = json.loads(line[6:])
                if "error" in piece:
                    raise RuntimeError(f"an answer: {piece['error']}")
                name, version = piece.get("id", name), piece.get("policy_version", version)
                now = time.monotonic()
                if last is not None:
                    gaps.append(now - last)
                last = now
        if not done:
            raise RuntimeError("an answer broke off")
        return name, version


def loop(client, deadline):
    gaps, rated, served, failures, stop = [], [0], set(), [], threading.Event()

    def streams(number):
        turn = 0
        while not stop.is_set():
            try:
                name, version = client.stream(f"The {number}th of {turn} stories begins with a", gaps)
                served.add(version)
                client.json("POST", "/v1/feedback", {"generation_id": name, "thumbs": "up" if (turn + number) % 2 else "down"})
                rated[0] += 1
            except Exception as e:  # whatever it is, it is what the check is for
                failures.append(str(e))
                stop.set()
            turn += 1

    threads = [threading.Thread(target=streams, args=(n,)) for n in range(STREAMS)]
    for thread in threads:
        thread.start()
    while time.monotonic() < deadline and not stop.is_set() and len(served) <= SWAPS:
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(failures[0])
    if len(served) <= SWAPS:
        raise RuntimeError(f"{len(served) - 1} versions were swapped in after {rated[0]} ratings, expected {SWAPS}")
    gaps.sort()
    at = lambda share: 1000 * gaps[int(share * (len(gaps) - 1))]
    return (f"{rated[0]} answers rated, {len(served) - 1} swaps under {STREAMS} streams, none failed; "
            f"gaps p50 {at(0.5):.1f}, p99 {at(0.99):.1f}, largest {at(1):.1f} ms, mean {1000 * statistics.mean(gaps):.1f}")


def wait_for(daemon, client, deadline):
    """Until the daemon answers."""
    while True:
        try:
            return client.json("GET", "/health")
        except (OSError, RuntimeError, ValueError):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the daemon does not answer") from None
            time.sleep(0.2)


def end(daemon):
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["apad", "model", "device", "data"]:
        parser.add_argument(f"--{name}", required=True)
    o = parser.parse_args()
    shutil.rmtree(o.data, ignore_errors=True)
    port = free_port()
    # Random weights say nothing worth judging: what is checked is the way there.
    settings = [f"train.device={o.device}", "gate.examine=false", "train.max_tokens=256"]
    command = [o.apad, "serve", "--model", o.model, "--data", o.data, "--listen", f"127.0.0.1:{port}"]
    for setting in settings:
        command += ["--set", setting]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client, deadline = Client(port), time.monotonic() + LONGEST
    try:
        wait_for(daemon, client, deadline)
        print(loop(client, deadline))
    except RuntimeError as e:
        sys.exit(str(e))
    finally:
        end(daemon)


if __name__ == "__main__":
    main()
