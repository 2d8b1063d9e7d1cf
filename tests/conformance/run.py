"""Runs cases.json through the Python package: run.py sync|async CASES MODEL DATA. Prints what run.c prints."""

import asyncio
import inspect
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import libapa

KIND, CASES, MODEL, DATA = sys.argv[1:]
ASYNC = {"sync": False, "async": True}[KIND]
COMMON = {"serve": {"context": 4096, "threads": 1, "speculate": False}, "train": {"auto": False, "threads": 1}}


async def settle(value):
    """What a call gives, of either engine."""
    return await value if inspect.isawaitable(value) else value


def words(repeated):
    piece, times = repeated
    return piece * times


class Case:
    def __init__(self):
        self.engines = {}
        self.streams = {}

    async def open(self, engine, data, model=None, setting=None):
        settings = json.loads(json.dumps(COMMON))
        if setting:
            section, key = setting[0].split(".")
            settings[section][key] = setting[1]
        make = libapa.AsyncEngine.open if ASYNC else libapa.Engine
        model = os.path.join(DATA, "missing.gguf") if model else MODEL
        self.engines[engine] = await settle(make(model, os.path.join(DATA, data), settings=settings))

    async def close(self, engine):
        await settle(self.engines[engine].close())

    async def start(self, engine, gen, request, prompt_repeat=None):
        prompt = {"prompt": words(prompt_repeat)} if prompt_repeat else {}
        self.streams[gen] = self.engines[engine].generate(**prompt, **request)

    async def pull(self, gen, quiet=False):
        stream, text = self.streams[gen], ""
        while piece := await settle(stream.read()):
            text += piece
        result = await settle(stream.result())
        cancelled = result["finish_reason"] == "cancelled"
        return "" if quiet else text.encode().hex(), "CANCELLED" if cancelled else "DONE"

    async def next(self, gen, timeout_ms):
        try:
            piece = await settle(self.streams[gen].read(None if timeout_ms < 0 else timeout_ms / 1000))
        except TimeoutError:
            return "", "TIMEOUT"
        return "", "OK" if piece else "DONE"

    async def cancel(self, gen):
        self.streams[gen].cancel()

    async def free(self, gen):
        self.streams[gen].close()

    async def result(self, gen):
        result = await settle(self.streams[gen].result())
        return f"{result['finish_reason']} {result['policy_version']}", "OK"

    async def feedback(self, engine, rating, gen=None, id=None):
        await settle(self.engines[engine].feedback(self.streams[gen].id if gen else id, rating=rating))

    async def step(self, engine):
        return (await settle(self.engines[engine].train_step()))["outcome"], "OK"

    async def policy(self, engine):
        return str(self.engines[engine].policy_version()), "OK"

    async def sync(self, engine):
        return str(await settle(self.engines[engine].sync())), "OK"

    async def rollback(self, engine):
        return str(await settle(self.engines[engine].rollback())), "OK"

    async def activate(self, engine, version):
        await settle(self.engines[engine].activate(version))

    async def versions(self, engine):
        return str(len(await settle(self.engines[engine].versions()))), "OK"

    async def count(self, engine, text=None, text_repeat=None, hex=None):
        # A str holds no bytes but characters; a surrogate is none of them.
        if hex is not None:
            text = bytes.fromhex(hex).decode("utf-8", "surrogateescape")
        return str(self.engines[engine].count_tokens(words(text_repeat) if text_repeat else text)), "OK"

    async def render(self, engine, messages):
        return self.engines[engine].render(messages).encode().hex(), "OK"

    async def many(self, engine, threads, request):
        complete = self.engines[engine].complete
        if ASYNC:
            return str(len(await asyncio.gather(*(complete(**request) for _ in range(threads))))), "OK"
        with ThreadPoolExecutor(threads) as pool:
            return str(len(list(pool.map(lambda _: complete(**request), range(threads))))), "OK"


async def main():
    with open(CASES, encoding="utf-8") as file:
        cases = json.load(file)
    for case in cases:
        if "python" not in case.get("only", ["python"]):
            continue
        run = Case()
        for number, step in enumerate(case["steps"]):
            arguments = {name: value for name, value in step.items() if name not in ("op", "expect", "value")}
            try:
                outcome = await getattr(run, step["op"])(**arguments) or ("", "OK")
            except libapa.ApaError as error:
                outcome = "", error.code[len("APA_ERR_") :]
            print(case["name"], number, *outcome, sep="\t")
        for stream in run.streams.values():
            stream.close()
        for engine in run.engines.values():
            await settle(engine.close())


asyncio.run(main())
