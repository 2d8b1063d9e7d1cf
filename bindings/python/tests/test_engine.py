"""The engine from threads: opening, asking, learning, closing."""

import gc
import json
import logging
import os
import pickle
import threading
import time
import urllib.request
import weakref
from unittest import mock

import libapa
from helpers import LONG, MODEL, SMALL, Case

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
}


class EngineTest(Case):
    def test_the_library_says_what_it_is(self):
        self.assertEqual(libapa.version, libapa.__version__)
        self.assertEqual(libapa.abi_version[0], 1)
        self.assertEqual((libapa.has("train"), libapa.has("nothing")), (True, False))

    def test_what_can_not_be_opened_says_why(self):
        data = self.folder()
        with self.fails("APA_ERR_MODEL", "missing.gguf"):
            libapa.Engine(os.path.join(data, "missing.gguf"), data)
        with self.fails("APA_ERR_ARG", "train.lambda"):
            libapa.Engine(MODEL, data, settings={"train.lamda": 1})
        with self.fails("APA_ERR_ARG", "train.lambda"):
            libapa.Engine(MODEL, data, settings={"train.lambda": float("nan")})
        with self.fails("APA_ERR_ARG", "the model is of type int, expected a path"):
            libapa.Engine(7, data)
        engine = libapa.Engine(MODEL, data, settings=SMALL)
        with self.fails("APA_ERR_BUSY"):
            libapa.Engine(MODEL, data, settings=SMALL)
        engine.close()
        libapa.Engine(MODEL, data, settings=SMALL).close()

    def test_an_error_crosses_to_another_process_whole(self):
        with self.fails("APA_ERR_MODEL", "missing.gguf"):
            try:
                libapa.Engine("missing.gguf", self.folder())
            except libapa.ApaError as error:
                raise pickle.loads(pickle.dumps(error)) from None

    def test_the_whole_loop_rates_learns_and_goes_back(self):
        engine = self.engine()
        events = engine.events()
        for seed in range(4):
            answer = engine.complete(prompt="the", max_tokens=8, seed=seed)
            self.assertEqual(answer["policy_version"], 0)
            receipt = engine.feedback(answer["id"], rating=seed / 2 - 1)
            self.assertEqual(receipt["generation_id"], answer["id"])
            engine.feedback(answer["id"], signal="copied")
        self.assertEqual(engine.trainer_status()["pending_ratings"], 4)
        step = engine.train_step()
        self.assertEqual((step["outcome"], step["version"]), ("published", engine.policy_version()))
        self.assertEqual([events.read()["event"], events.read()["event"]], ["version_published", "step_done"])
        self.assertEqual(engine.complete(prompt="the", max_tokens=4, seed=1)["policy_version"], 1)

        file = os.path.join(self.folder(), "version.apa")
        engine.snapshot(1, file)
        self.assertTrue(os.path.exists(file))
        self.assertEqual((engine.rollback(), engine.sync(), engine.rollback()), (0, 1, 0))
        self.assertEqual(engine.restore(file), 2)
        engine.activate(1)
        self.assertEqual([(v["version"], v["active"]) for v in engine.versions()], [(0, False), (1, True), (2, False)])
        self.assertEqual(engine.version(1)["lineage"], [0])
        with self.fails("APA_ERR_ARG"):
            engine.activate(41)
        with self.fails("APA_ERR_ARG", "the version is -1"):
            engine.activate(-1)
        self.assertEqual(engine.train_step()["outcome"], "skipped")

    def test_answers_are_scored_and_samples_from_elsewhere_taken_in(self):
        engine = self.engine()
        answers = engine.answers()
        answer = engine.complete(prompt="the", max_tokens=6, seed=3)
        self.assertEqual(answers.read()["generation_id"], answer["id"])
        engine.reward(answer["id"], 0.5)
        hi = [{"role": "user", "content": "hi"}]
        added = engine.add_sample("abc", messages=hi, reward=-1)
        self.assertEqual(engine.status()["trainer"]["pending_ratings"], 2)
        self.assertEqual(list(engine.prefer(answer["id"], added["generation_id"])), ["preference_id"])
        with self.fails("APA_ERR_ARG"):
            engine.feedback("nobody", rating=1)
        with self.fails("APA_ERR_ARG"):
            engine.reward(answer["id"], 7)
        self.assertEqual(engine.forget("nobody")["generations"], 0)
        self.assertIsNone(engine.unlearn_plan("nobody"))
        unlearned = engine.unlearn("nobody")
        self.assertEqual((unlearned["generations"], unlearned["unlearning"]), (0, None))
        with self.fails("APA_ERR_ARG"):
            engine.forget("")
        with self.assertRaises(TimeoutError):
            answers.read(timeout=0.01)
        answers.close()
        self.assertEqual((answers.read(), list(answers)), (None, []))

    def test_a_function_scores_answers_and_its_exceptions_are_told(self):
        engine = self.engine()
        events, seen = engine.events(), []

        def score(answer):
            seen.append(answer["generation_id"])
            if answer["completion_tokens"] < 100:
                raise ValueError("mine")

        def rated(engine, number):
            deadline = time.monotonic() + 60
            while engine.status()["trainer"]["pending_ratings"] < number:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.01)

        with self.assertLogs("libapa", "ERROR") as logs:
            engine.set_reward(score)
            failed = engine.complete(prompt="the", max_tokens=4, seed=1)
            self.assertEqual(events.read(timeout=60)["code"], "callback_error")
        self.assertIn("ValueError: mine", logs.output[0])
        engine.set_reward(lambda answer: 0.25)
        engine.complete(prompt="the", max_tokens=4, seed=2)
        rated(engine, 1)
        engine.set_reward(lambda answer: None)
        engine.complete(prompt="the", max_tokens=4, seed=3)
        engine.set_reward(None)
        engine.complete(prompt="the", max_tokens=4, seed=4)
        self.assertEqual((seen, engine.status()["trainer"]["pending_ratings"]), ([failed["id"]], 1))
        with self.fails("APA_ERR_ARG", "expected a function"):
            engine.set_reward(7)

    def test_the_trainer_is_started_and_stopped(self):
        engine = self.engine()
        engine.start_trainer()
        self.assertTrue(engine.trainer_status()["auto"])
        engine.stop_trainer()
        self.assertFalse(engine.trainer_status()["auto"])

    def test_text_is_counted_and_rendered_and_numbers_shown(self):
        engine = self.engine()
        self.assertGreater(engine.count_tokens("abc"), 0)
        self.assertIn("abc", engine.render([{"role": "user", "content": "abc"}]))
        self.assertIn("apa_policy_version 0", engine.metrics())
        for text in (7, b"abc", "\udc80", None):
            with self.subTest(text=text), self.fails("APA_ERR_ARG", "the text"):
                engine.count_tokens(text)
        with self.fails("APA_ERR_ARG", "can't be written as JSON"):
            engine.generate(prompt="a", temperature=float("inf"))
        with self.fails("APA_ERR_ARG", "can't be written as JSON"):
            engine.generate(prompt=object())
        with self.fails("APA_ERR_ARG", 'unknown field "temprature", did you mean "temperature"?'):
            engine.generate(prompt="a", temprature=1)

    def test_http_runs_beside_the_application(self):
        engine = self.engine()
        address = engine.start_http("127.0.0.1:0")
        with urllib.request.urlopen(f"http://{address}/health") as answer:
            self.assertEqual(json.load(answer)["status"], "ok")
        with self.fails("APA_ERR_BUSY"):
            engine.start_http("127.0.0.1:0")
        engine.stop_http()
        with self.assertRaises(OSError):
            urllib.request.urlopen(f"http://{address}/health")

    def test_a_closed_engine_is_closed_to_every_call(self):
        engine = self.engine()
        stream, events = engine.generate(**LONG), engine.events()
        self.assertTrue(stream.read())
        ended = []
        waiting = threading.Thread(target=lambda: ended.append(events.read()))
        waiting.start()
        engine.close()
        engine.close()
        waiting.join(60)
        self.assertEqual(ended, [None])
        for call in (
            stream.result,
            stream.read,
            engine.status,
            engine.train_step,
            engine.events,
            engine.policy_version,
            lambda: engine.generate(prompt="a"),
            lambda: engine.set_reward(print),
        ):
            with self.subTest(call=call), self.fails("APA_ERR_CLOSED"):
                call()

    def test_a_demanded_call_is_in_the_result_and_can_be_answered(self):
        engine = self.engine()
        messages = [{"role": "user", "content": "one and one?"}]
        said = engine.complete(messages=messages, tools=[ADD], tool_choice="required", max_tokens=400, seed=1)
        (call,) = said["tool_calls"]
        self.assertEqual(call["function"]["name"], "add")
        self.assertIn(json.loads(call["function"]["arguments"])["n"], (1, 2))
        messages.append({"role": "assistant", "tool_calls": said["tool_calls"]})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "2"})
        after = engine.complete(messages=messages, tools=[ADD], tool_choice="none", max_tokens=4)
        self.assertNotIn("tool_calls", after)


class StreamTest(Case):
    def test_a_stream_gives_its_text_in_order_and_then_ends(self):
        engine = self.engine()
        stream = engine.generate(**{**LONG, "max_tokens": 50})
        pieces = list(stream)
        self.assertGreater(len(pieces), 1)
        self.assertEqual("".join(pieces), stream.result()["text"])
        self.assertEqual((list(stream), stream.read(), stream.result()["finish_reason"]), ([], "", "length"))
        stream.cancel()
        stream.close()
        self.assertEqual(stream.result()["finish_reason"], "length")

    def test_a_cancelled_stream_ends_with_what_was_made(self):
        engine = self.engine()
        stream = engine.generate(**LONG)
        first = stream.read()
        stream.cancel()
        result = stream.result()
        self.assertEqual(result["finish_reason"], "cancelled")
        self.assertTrue(result["text"].startswith(first))

    def test_a_stream_that_is_left_or_forgotten_ends_its_generation(self):
        engine = self.engine()

        def idle():
            deadline = time.monotonic() + 60
            while engine.status()["running"]:
                self.assertLess(time.monotonic(), deadline, "the generation goes on")
                time.sleep(0.01)

        with engine.generate(**LONG) as stream:
            stream.read()
        idle()
        with self.fails("APA_ERR_CLOSED", "closed before the end"):
            stream.read()
        with self.fails("APA_ERR_CLOSED", "closed before the end"):
            stream.result()
        stream = engine.generate(**LONG)
        stream.read()
        del stream
        gc.collect()
        idle()

    def test_an_engine_lives_as_long_as_what_runs_on_it_and_is_collected_then(self):
        engine = libapa.Engine(MODEL, self.folder(), settings=SMALL)
        stream, gone = engine.generate(prompt="the", max_tokens=8, temperature=0), weakref.ref(engine)
        del engine
        gc.collect()
        self.assertIsNotNone(gone())
        self.assertIn(stream.result()["finish_reason"], ("stop", "length"))
        del stream
        gc.collect()
        self.assertIsNone(gone())

    def test_threads_share_an_engine_and_a_stream(self):
        engine = self.engine()
        stream, pieces = engine.generate(**{**LONG, "max_tokens": 200}), []
        readers = [threading.Thread(target=lambda: pieces.extend(stream)) for _ in range(8)]
        asked = [threading.Thread(target=lambda: engine.complete(prompt="the", max_tokens=8)) for _ in range(8)]
        for thread in readers + asked:
            thread.start()
        for thread in readers + asked:
            thread.join(120)
            self.assertFalse(thread.is_alive())
        self.assertEqual(sorted("".join(pieces)), sorted(stream.result()["text"]))

    def test_a_stream_that_is_closed_wakes_its_reader(self):
        engine = self.engine(**{"serve.slots": 1})
        front = engine.generate(**LONG)
        behind, ended = engine.generate(prompt="the", max_tokens=900, seed=1), []

        def read():
            try:
                behind.read()
            except libapa.ApaError as error:
                ended.append(error.code)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.05)
        behind.close()
        reader.join(60)
        front.close()
        self.assertEqual(ended, ["APA_ERR_CLOSED"])


class LogTest(Case):
    def test_the_log_goes_to_logging_until_it_is_taken_back(self):
        self.addCleanup(libapa.set_log, None)
        with self.fails("APA_ERR_ARG", "the log level is 'loud'"):
            libapa.set_log("loud")
        logger = logging.getLogger("mine")
        with self.assertLogs(logger, 5) as logs:
            libapa.set_log("debug", logger)
            libapa.Engine(MODEL, self.folder(), settings=SMALL).close()
        for record in logs.records:
            self.assertGreaterEqual(record.levelno, logging.DEBUG)
            self.assertIn(record.apa["message"], record.getMessage())
            self.assertIn("target", record.apa)
        with self.assertNoLogs(logger, 5) if hasattr(self, "assertNoLogs") else self.subTest():
            libapa.set_log(None)
            libapa.Engine(MODEL, self.folder(), settings=SMALL).close()

    def test_a_handler_that_fails_disturbs_nobody(self):
        self.addCleanup(libapa.set_log, None)
        logger, seen, told = logging.Logger("failing"), [], []

        class Failing(logging.Handler):
            def emit(self, record):
                seen.append(record)
                raise ValueError("mine")

        logger.addHandler(Failing())
        with mock.patch("sys.unraisablehook", lambda what: told.append(what.exc_type)):
            libapa.set_log(logging.DEBUG, logger)
            libapa.Engine(MODEL, self.folder(), settings=SMALL).close()
            libapa.set_log(None)
        self.assertEqual((len(seen) > 0, told), (True, [ValueError] * len(seen)))
