"""`apad chat` at a terminal: what a person types and sees. APAD URL CACHE; prints ok."""

import os
import pty
import re
import select
import signal
import sys
import time

apad, url, cache = sys.argv[1:]
environment = dict(os.environ, APAD_CACHE=cache, TERM="xterm-256color", NO_COLOR="1")


class Terminal:
    """A child at a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(apad, [apad, "chat", "--url", url, *arguments], environment)
        self.seen = ""
        self.all = ""

    def until(self, words, seconds=60):
        """Reads until the words were printed since the last call; what was read."""
        end = time.time() + seconds
        while True:
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen).replace("\r", "")
            at = plain.find(words)
            if at >= 0:
                self.seen = plain[at + len(words):]
                return plain[: at + len(words)]
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.time()))
            assert ready, f"no {words!r} in {plain!r}"
            try:
                read = os.read(self.fd, 65536).decode(errors="replace")
                self.seen += read
                self.all += read
            except OSError:
                raise AssertionError(f"it ended before {words!r}: {plain!r}") from None

    def type(self, text):
        os.write(self.fd, text.encode())

    def ended(self):
        end = time.time() + 30
        while time.time() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            # A terminal that nobody reads keeps its program waiting.
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.all += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    pass
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it does not end")


talk = Terminal("--user", "ann", "--max-tokens", "4")
talk.until("/help tells what else there is")
talk.until("\n> ")

# An empty line does nothing; help is there.
talk.type("\r")
talk.until("\n> ")
talk.type("/help\r")
talk.until("/bye            ends, in the midst of an answer too")
talk.until("\n> ")

# The tab key completes a command, and a mistyped one is said.
talk.type("/sig\t\r")
talk.until("needs some words")
talk.until("\n> ")

# An answer that is cut off doesn't look whole, and a rating says what it does.
talk.type("hello\r")
seen = talk.until("\n> ")
while "cut off at 4 tokens" not in seen:
    # Random weights ended it before; once more.
    talk.type("hello\r")
    seen = talk.until("\n> ")
talk.type("+\r")
talk.until("rated +1; 1 of 4 ratings for the next step")
talk.until("\n> ")
talk.type("/fix Good day.\r")
talk.until("corrected; kept as a pair for the reward model")
talk.until("\n> ")
talk.type("/again\r")
talk.until("/better says that this one is better")
talk.until("\n> ")
talk.type("/better\r")
talk.until("preferred; kept as a pair")
talk.until("\n> ")

# The arrow keys bring back what was typed, and edit it: no escape codes in the line.
talk.type("\x1b[A")
talk.until("/better")
talk.type("\x1b[D\x1b[C\x15/max 5\r")
talk.until("answers may have 5 tokens")
talk.until("\n> ")

# Several lines are one question.
talk.type("one \\\rtwo\r")
talk.until("\n> ")
talk.type("\x1b[A")
talk.until("two")
talk.type("\x15\x03")

# Ctrl-C at the prompt says how to end, and doesn't.
talk.until("/bye or Ctrl-D ends")
talk.until("\n> ")

# Ctrl-C in the middle of an answer ends the answer alone.
talk.type("/max 1500\r")
talk.until("answers may have 1500 tokens")
talk.until("\n> ")
for tries in range(60):
    talk.type("on and on\r")
    talk.until("on and on\n")
    # Random weights may end it at once, and what is stopped before it began is no answer.
    time.sleep(0.003 * (tries % 20))
    os.kill(talk.pid, signal.SIGINT)
    if "[stopped]" in talk.until("\n> "):
        break
else:
    raise AssertionError("no answer was stopped")
talk.type("-\r")
talk.until("rated -1")
talk.until("\n> ")
talk.type("/max 4\r")
talk.until("\n> ")

# Enough ratings: that a version serves is told without a question. (A step takes less than the second between two looks.)
for rating in "+-+":
    talk.type("hello\r")
    talk.until("\n> ")
    talk.type(rating + "\r")
    talk.until("rated")
    talk.until("\n> ")
if "version 1 serves now" not in talk.all:
    talk.until("version 1 serves now")

talk.type("/bye\r")
assert talk.ended() == 0

# The next talk knows what was typed in this one, and Ctrl-D ends it. The file is its user's alone.
talk = Terminal("--policy-version", "0", "--top-p", "0.9")
talk.until("\n> ")
talk.type("\x1b[A")
talk.until("/bye")
talk.type("\x15\x04")
assert talk.ended() == 0

# What is typed while an answer is written is heard after it, but for what ends the talk, which ends the answer, too.
for tries in range(40):
    talk = Terminal("--max-tokens", "1500")
    talk.until("\n> ")
    talk.type("on and on\r")
    talk.until("on and on\n")
    talk.type("/max 7\r")
    talk.until("answers may have 7 tokens")
    talk.until("\n> ")
    talk.type("/max 1500\r")
    talk.until("answers may have 1500 tokens")
    talk.until("\n> ")
    talk.type("on and on\r")
    talk.until("on and on\n")
    # Random weights may end it at once.
    time.sleep(0.003 * (tries % 20))
    talk.type("/bye\r")
    assert talk.ended() == 0
    if "[stopped]" in talk.all:
        break
else:
    raise AssertionError("no answer was stopped by /bye")
mode = os.stat(os.path.join(cache, "chat_history")).st_mode
assert mode & 0o077 == 0, oct(mode)
print("ok")
