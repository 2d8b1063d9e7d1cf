"""The ends of a process and its forks, with work in flight; how the library is found."""

import os
import shutil
import signal
import subprocess
import sys
import time
import unittest

import libapa
from helpers import MODEL, SMALL, Case, run

OPEN = "engine = libapa.Engine(sys.argv[1], sys.argv[2], settings=SMALL)\n"
BUSY = """
import threading
banned = {'285': -100, '286': -100, '287': -100}
streams = [engine.generate(prompt='the', max_tokens=900, seed=seed, logit_bias=banned) for seed in range(8)]
for i in range(4): engine.add_sample('abc', prompt='the', reward=i / 4)
def quietly(call):
    try: call()
    except libapa.ApaError: pass
for call in [engine.train_step] + [stream.result for stream in streams]:
    threading.Thread(target=quietly, args=[call], daemon=True).start()
"""


class ProcessTest(Case):
    def ends(self, body: str) -> str:
        """What a program with an engine prints, after a clean end."""
        done = run(OPEN + body, MODEL, self.folder())
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def test_a_process_exits_with_an_open_engine_and_work_in_flight(self):
        self.assertEqual(self.ends(f"{BUSY}\nprint('out')"), "out\n")
        self.assertEqual(self.ends(f"{BUSY}\nprint('out')\nsys.exit(0)"), "out\n")

    def test_a_process_exits_with_a_log_and_a_reward_function_in_use(self):
        loud = "import logging\nlogging.basicConfig(stream=sys.stdout, level=1)\nlibapa.set_log('trace')\n"
        score = "engine.set_reward(lambda answer: 0.5)\n"
        self.assertIn("libapa", self.ends(loud + score + BUSY))

    def test_a_process_exits_with_tasks_that_wait(self):
        body = """
import asyncio
async def main():
    own = libapa.AsyncEngine(engine)
    asyncio.ensure_future(own.generate(prompt='the', max_tokens=900, seed=1).result())
    asyncio.ensure_future(own.events().read())
    await asyncio.sleep(0.05)
asyncio.run(main())
print('out')
"""
        self.assertEqual(self.ends(body), "out\n")

    def test_an_exception_that_nobody_catches_ends_the_process_with_its_own_message(self):
        done = run(f"{OPEN}{BUSY}\nraise ValueError('mine')", MODEL, self.folder())
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.endswith("ValueError: mine\n"), done.stderr)

    def test_ctrl_c_ends_a_wait(self):
        body = f"{OPEN}\nevents = engine.events()\nprint('waiting', flush=True)\nevents.read()"
        program = subprocess.Popen(
            [sys.executable, "-c", f"import sys, libapa\nSMALL = {SMALL!r}\n{body}", MODEL, self.folder()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.assertEqual(program.stdout.readline(), "waiting\n")
        time.sleep(0.3)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
        self.assertTrue(said.rstrip().endswith("KeyboardInterrupt"), said)

    def test_a_forked_process_is_told_that_it_can_not_use_the_engine_and_ends(self):
        body = """
import gc, os, warnings
warnings.simplefilter('ignore', DeprecationWarning)  # From 3.12 on Python itself warns of this fork.
stream = engine.generate(prompt='the', max_tokens=900, seed=1)
child = os.fork()
if child == 0:
    for call in (engine.status, stream.read, lambda: libapa.Engine(sys.argv[1], sys.argv[2] + '/other')):
        try: call()
        except libapa.ApaError as error: print(error.code, 'forked' in str(error))
    del stream, engine
    gc.collect()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), engine.status()['policy_version'])
"""
        self.assertEqual(self.ends(body), "APA_ERR_UNSUPPORTED True\n" * 3 + "0 0\n")

    def test_a_process_that_forked_before_opens_its_own(self):
        body = """
import os
child = os.fork()
engine = libapa.Engine(sys.argv[1], sys.argv[2] + ('/child' if child == 0 else '/parent'), settings=SMALL)
engine.complete(prompt='the', max_tokens=2)
engine.close()
if child: print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
        done = run(body, MODEL, self.folder())
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "0\n", ""))


class LoadTest(Case):
    def imported(self, **environment) -> subprocess.CompletedProcess:
        kept = {name: value for name, value in os.environ.items() if name not in ("APA_LIB", "APA_LIB_DIR")}
        return run("print(libapa.library_path)", environment={**kept, "LD_LIBRARY_PATH": "", **environment})

    def refused(self, *said: str, **environment):
        done = self.imported(**environment)
        self.assertEqual(done.returncode, 1, done.stdout)
        last = done.stderr.strip().splitlines()[-1]
        for word in ("ImportError", *said):
            self.assertIn(word, last)

    def test_the_library_is_the_one_that_is_named(self):
        found = os.path.realpath(libapa.library_path)
        self.assertEqual(self.imported(APA_LIB=found).stdout, f"{found}\n")
        folder = self.folder()
        os.symlink(found, os.path.join(folder, "libapa.so"))
        self.assertEqual(self.imported(APA_LIB_DIR=folder).stdout, f"{folder}/libapa.so\n")

    def test_a_library_that_is_not_there_or_not_ours_is_refused_with_the_reason(self):
        self.refused("APA_LIB names it", "/nowhere/libapa.so", APA_LIB="/nowhere/libapa.so")
        self.refused("APA_LIB_DIR names it", "/nowhere/libapa.so", APA_LIB_DIR="/nowhere")
        self.refused("is not libapa", APA_LIB="libc.so.6")

    @unittest.skipUnless(shutil.which("cc"), "a C compiler makes the other library")
    def test_a_library_of_another_interface_is_refused_with_both_versions(self):
        folder = self.folder()
        for found, number in (("1.1", 0x10001), ("2.0", 0x20000)):
            library = os.path.join(folder, f"{number}.so")
            source = f"unsigned apa_abi_version(void) {{ return {number}; }}"
            subprocess.run(["cc", "-shared", "-o", library, "-x", "c", "-"], input=source, text=True, check=True)
            self.refused(f"has interface {found}, expected 1.2 or a newer 1.x", APA_LIB=library)
