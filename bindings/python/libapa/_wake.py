"""Tells event loops that the library has something for them. Runs no Python on the library's threads: these post a semaphore,
and one thread of Python, for all loops and streams, passes it on. So decoding never waits for the interpreter's lock."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._pulls import Pull

_libc = ctypes.CDLL(None)
for _name in ("sem_wait", "sem_trywait", "sem_post"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]

# Larger than any sem_t of Linux, and never freed: hooks may post it as long as the process lives.
_semaphore = (ctypes.c_uint64 * 16)()
_SEMAPHORE = ctypes.addressof(_semaphore)
_libc.sem_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
_libc.sem_init(_SEMAPHORE, 0, 0)
# `int sem_post(sem_t *)` as a hook `void (void *)`: its result is in a register that the caller doesn't look at.
_POST = ctypes.cast(_libc.sem_post, ctypes.c_void_p).value or 0

_lock = threading.Lock()
_hubs: dict[asyncio.AbstractEventLoop, Hub] = {}
_running = False


def _pass_on() -> None:
    while True:
        _libc.sem_wait(_SEMAPHORE)
        while _libc.sem_trywait(_SEMAPHORE) == 0:
            pass
        with _lock:
            hubs = list(_hubs.values())
        for hub in hubs:
            hub.ring()


class Hub:
    """What waits on one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: dict[asyncio.Future[Any], Pull[Any]] = {}
        self._rung = False

    @staticmethod
    def here() -> Hub:
        """That of the running loop."""
        global _running
        loop = asyncio.get_running_loop()
        with _lock:
            for other in [other for other in _hubs if other.is_closed()]:
                del _hubs[other]
            hub = _hubs.setdefault(loop, Hub(loop))
            if not _running:
                _running = True
                threading.Thread(target=_pass_on, name="libapa-wake", daemon=True).start()
        return hub

    def ring(self) -> None:
        """Looks for everybody who waits; from any thread."""
        if self._waiting and not self._rung:
            self._rung = True
            try:
                self.loop.call_soon_threadsafe(self._look)
            except RuntimeError:
                self._rung = False  # The loop is closed.

    def _look(self) -> None:
        self._rung = False
        for waiter, pull in list(self._waiting.items()):
            if waiter.done():
                continue
            try:
                piece = pull.take(0)
            except Exception as error:
                waiter.set_exception(error)
            else:
                if piece is not None:
                    waiter.set_result(piece)

    def expect(self, pull: Pull[Any]) -> asyncio.Future[Any]:
        """A future of the next piece. Look once more after this call: what came before it rings nobody."""
        waiter: asyncio.Future[Any] = self.loop.create_future()
        self._waiting[waiter] = pull
        return waiter

    def leave(self, waiter: asyncio.Future[Any]) -> None:
        """It is expected no longer."""
        del self._waiting[waiter]
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # Told elsewhere, or of no interest any more.
        waiter.cancel()


def hook(pull: Pull[Any]) -> None:
    """Has the library post the semaphore when there is something to take."""
    pull.set_wake(_POST, _SEMAPHORE)
