"""Answers and news for threads: iterables that wait. A waiting thread lets other threads of Python run, and hears Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, TypeVar

from ._pulls import Ended, Generation, News, Pull
from ._types import Result

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._engine import Engine

T = TypeVar("T")

# Signals are handled between calls of the library.
_SLICE_MS = 100


def _wait(pull: Pull[T], timeout: float | None) -> T:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _SLICE_MS if deadline is None else max(0, min(_SLICE_MS, round((deadline - time.monotonic()) * 1000)))
        piece = pull.take(left)
        if piece is not None:
            return piece
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"nothing came within {timeout} s")


class Stream:
    """An answer being made. Iterating gives its text in whole codepoints.

    Leaving a ``with`` block, or forgetting the stream, ends the generation. Threads that read the same stream share its text.
    """

    def __init__(self, generation: Generation, engine: Engine) -> None:
        self._generation = generation
        self._engine = engine  # Not collected before what runs on it.

    @property
    def id(self) -> str:
        """Names the answer, for feedback."""
        return self._generation.id

    def read(self, timeout: float | None = None) -> str:
        """More text; ``""`` once the answer has ended. Raises TimeoutError if none came within ``timeout`` seconds."""
        try:
            return _wait(self._generation, timeout)
        except Ended:
            return ""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return _wait(self._generation, None)
        except Ended:
            raise StopIteration from None

    def result(self) -> Result:
        """The whole answer, once it has ended; pulls what is left of it."""
        while self.read():
            pass
        return self._generation.result()

    def cancel(self) -> None:
        """Asks it to end. What has been made still comes, with ``finish_reason`` ``cancelled``."""
        self._generation.cancel()

    def close(self) -> None:
        """Ends and frees it."""
        self._generation.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Feed(Generic[T]):
    """News, from its opening on: the newest 256 are kept. It ends with the engine."""

    def __init__(self, news: News[T], engine: Engine) -> None:
        self._news = news
        self._engine = engine

    def read(self, timeout: float | None = None) -> T | None:
        """The next; None once the feed has ended. Raises TimeoutError if none came within ``timeout`` seconds."""
        try:
            return _wait(self._news, timeout)
        except Ended:
            return None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return _wait(self._news, None)
        except Ended:
            raise StopIteration from None

    def close(self) -> None:
        """Ends it."""
        self._news.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
