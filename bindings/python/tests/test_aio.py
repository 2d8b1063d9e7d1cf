"""The engine from asyncio: streams, cancellation, loops."""

import asyncio
import gc
import os
import threading
import time
import unittest

import libapa
from helpers import LONG, MODEL, SMALL, Case


class AioTest(Case, unittest.IsolatedAsyncioTestCase):
    async def open(self, **settings) -> libapa.AsyncEngine:
        engine = await libapa.AsyncEngine.open(MODEL, self.folder(), settings={**SMALL, **settings})
        self.addAsyncCleanup(engine.close)
        return engine

    async def idle(self, engine):
        deadline = time.monotonic() + 60
        while engine.status()["running"]:
            self.assertLess(time.monotonic(), deadline, "the generation goes on")
            await asyncio.sleep(0.01)

    async def test_the_whole_loop_rates_learns_and_goes_back(self):
        engine = await self.open()
        events = engine.events()
        for seed in range(4):
            answer = await engine.complete(prompt="the", max_tokens=8, seed=seed)
            await engine.feedback(answer["id"], rating=seed / 2 - 1)
        step = await engine.train_step()
        self.assertEqual((step["outcome"], engine.policy_version()), ("published", 1))
        self.assertEqual((await events.read())["event"], "version_published")
        async for event in events:
            self.assertEqual(event["event"], "step_done")
            break
        file = os.path.join(self.folder(), "version.apa")
        await engine.snapshot(1, file)
        self.assertEqual([await engine.rollback(), await engine.sync(), await engine.rollback()], [0, 1, 0])
        self.assertEqual(await engine.restore(file), 2)
        await engine.activate(1)
        self.assertEqual([v["active"] for v in await engine.versions()], [False, True, False])
        self.assertEqual((await engine.version(2))["parent"], 0)
        said = await engine.chat([{"role": "user", "content": "hi"}], max_tokens=4)
        await engine.prefer(said["id"], answer["id"])
        await engine.add_sample("abc", prompt="a", reward=1)
        await engine.reward(said["id"], 0.5)
        self.assertIsNone(await engine.unlearn_plan("nobody"))
        self.assertEqual((await engine.forget("nobody"))["feedback"], 0)
        self.assertIsNone((await engine.unlearn("nobody"))["unlearning"])
        await engine.set_reward(None)
        engine.start_trainer()
        engine.stop_trainer()
        self.assertFalse(engine.trainer_status()["auto"])
        self.assertIn(":", await engine.start_http("127.0.0.1:0"))
        await engine.stop_http()

    async def test_many_streams_take_no_thread_each(self):
        engine = await self.open()
        await engine.complete(prompt="the", max_tokens=2)
        before, most = threading.active_count(), 0

        async def one(seed):
            nonlocal most
            stream = engine.generate(prompt="the", max_tokens=16, seed=seed)
            text = ""
            async for piece in stream:
                text += piece
                most = max(most, threading.active_count())
            result = await stream.result()
            self.assertEqual(text, result["text"])
            return text

        texts = await asyncio.gather(*(one(seed) for seed in range(64)))
        self.assertGreater(len(set(texts)), 8)
        # The one that passes wakes on may have been started here.
        self.assertLessEqual(most, before + 1)

    async def test_the_loop_goes_on_while_streams_wait(self):
        engine = await self.open()
        ticks, running = 0, asyncio.ensure_future(engine.complete(**{**LONG, "max_tokens": 200}))
        while not running.done():
            ticks += 1
            await asyncio.sleep(0)
        self.assertGreater(ticks, 100)

    async def test_cancelling_who_waits_ends_the_generation(self):
        engine = await self.open()
        stream = engine.generate(**LONG)
        reading = asyncio.ensure_future(stream.result())
        await asyncio.sleep(0.05)
        reading.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await reading
        await self.idle(engine)
        with self.fails("APA_ERR_CLOSED", "closed before the end"):
            await stream.read()
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.complete(**LONG), 0.05)
        await self.idle(engine)

    async def test_a_timeout_ends_the_wait_alone(self):
        engine = await self.open(**{"serve.slots": 1})
        front = engine.generate(**LONG)
        behind = engine.generate(prompt="the", max_tokens=8, temperature=0)
        for timeout in (0, 0.02):
            with self.assertRaises(TimeoutError):
                await behind.read(timeout=timeout)
        front.close()
        self.assertIn((await behind.result())["finish_reason"], ("stop", "length"))
        self.assertEqual(await behind.read(timeout=0), "")

    async def test_a_stream_that_is_left_or_forgotten_ends_its_generation(self):
        engine = await self.open()
        async with engine.generate(**LONG) as stream:
            await stream.read()
        await self.idle(engine)
        stream = engine.generate(**LONG)
        async for _ in stream:
            break
        del stream
        gc.collect()
        await self.idle(engine)

    async def test_a_stream_or_feed_that_is_closed_wakes_who_waits(self):
        engine = await self.open(**{"serve.slots": 1})
        front = engine.generate(**LONG)
        behind = engine.generate(prompt="the", max_tokens=900, seed=1)
        events = engine.events()
        waiting = [asyncio.ensure_future(behind.read()), asyncio.ensure_future(events.read())]
        await asyncio.sleep(0.05)
        behind.close()
        events.close()
        with self.fails("APA_ERR_CLOSED"):
            await asyncio.wait_for(waiting[0], 60)
        self.assertIsNone(await asyncio.wait_for(waiting[1], 60))
        front.close()

    async def test_an_engine_that_is_closed_wakes_all(self):
        engine = await self.open()
        stream, events = engine.generate(**LONG), engine.events()
        waiting = [asyncio.ensure_future(stream.result()), asyncio.ensure_future(events.read())]
        await asyncio.sleep(0.05)
        await engine.close()
        await engine.close()
        with self.fails("APA_ERR_CLOSED"):
            await asyncio.wait_for(waiting[0], 60)
        self.assertIsNone(await asyncio.wait_for(waiting[1], 60))
        with self.fails("APA_ERR_CLOSED"):
            await engine.versions()

    async def test_no_event_is_lost_when_a_wait_is_cancelled(self):
        engine = await self.open()
        answers, seen = engine.answers(), []

        async def ask():
            for seed in range(16):
                await engine.complete(prompt="the", max_tokens=1, seed=seed)

        asking = asyncio.ensure_future(ask())
        while len(seen) < 16:
            try:
                seen.append((await answers.read(timeout=0.001))["generation_id"])
            except TimeoutError:
                self.assertFalse(asking.done() and asking.exception())
        await asking
        self.assertEqual(len(set(seen)), 16)

    async def test_several_tasks_share_a_stream(self):
        engine = await self.open()
        stream, pieces = engine.generate(**{**LONG, "max_tokens": 60}), []

        async def read():
            async for piece in stream:
                pieces.append(piece)

        await asyncio.gather(*(read() for _ in range(5)))
        self.assertEqual("".join(pieces), (await stream.result())["text"])

    async def test_an_open_that_is_cancelled_frees_its_folder(self):
        data = self.folder()
        opening = asyncio.ensure_future(libapa.AsyncEngine.open(MODEL, data, settings=SMALL))
        await asyncio.sleep(0)
        opening.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await opening
        deadline = time.monotonic() + 60
        while True:
            try:
                engine = await libapa.AsyncEngine.open(MODEL, data, settings=SMALL)
                break
            except libapa.ApaError as error:
                self.assertEqual(error.code, "APA_ERR_BUSY")
                self.assertLess(time.monotonic(), deadline)
                await asyncio.sleep(0.01)
        await engine.close()


class LoopsTest(Case):
    def test_an_engine_serves_one_loop_after_another_and_several_at_once(self):
        engine = libapa.AsyncEngine(self.engine())

        async def ask():
            return (await engine.complete(prompt="the", max_tokens=16, temperature=0))["text"]

        texts = [asyncio.run(ask()) for _ in range(3)]
        threads = [threading.Thread(target=lambda: texts.append(asyncio.run(ask()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual((len(texts), len(set(texts[:3]))), (7, 1))

    def test_a_stream_says_that_it_belongs_to_another_loop(self):
        engine = libapa.AsyncEngine(self.engine())

        async def start():
            return engine.generate(prompt="the", max_tokens=900)

        stream = asyncio.run(start())
        with self.fails("APA_ERR_ARG", "another event loop"):
            asyncio.run(stream.read())
