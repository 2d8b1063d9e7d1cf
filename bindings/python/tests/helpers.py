"""What the tests share: engines on a tiny model (APA_TINY_MODEL), closed when their test ends. Tests nothing."""

import os
import subprocess
import sys
import tempfile
import unittest

import libapa

MODEL = os.environ["APA_TINY_MODEL"]
SMALL = {"serve": {"context": 4096, "threads": 1, "slots": 4, "speculate": False}, "train": {"auto": False, "threads": 1}}


class Case(unittest.TestCase):
    def folder(self) -> str:
        folder = tempfile.TemporaryDirectory(prefix="apa-python-")
        self.addCleanup(folder.cleanup)
        return folder.name

    def engine(self, **settings) -> libapa.Engine:
        engine = libapa.Engine(MODEL, self.folder(), settings={**SMALL, **settings})
        self.addCleanup(engine.close)
        return engine

    def fails(self, code: str, message: str = ""):
        """A context in which an ApaError of this code comes."""
        return _Fails(self, code, message)


class _Fails:
    def __init__(self, case, code, message):
        self.case, self.code, self.message = case, code, message

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.case.assertIsInstance(error, libapa.ApaError, f"expected {self.code}")
        self.case.assertEqual((error.code, self.message in str(error)), (self.code, True), str(error))
        return True


#: Goes on to its last token: those that end an answer are forbidden.
LONG = {
    "prompt": "the",
    "max_tokens": 4000,
    "temperature": 0,
    "logit_bias": {"285": -100, "286": -100, "287": -100},
}


def run(body: str, *arguments: str, environment=None) -> subprocess.CompletedProcess:
    """A program in a process of its own, with an engine's model and folder as arguments."""
    source = f"import sys, libapa\nSMALL = {SMALL!r}\n{body}"
    return subprocess.run(
        [sys.executable, "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
