"""Hands the log of the library to logging. Prints nothing and chooses no handler."""

from __future__ import annotations

import atexit
import ctypes
import json
import logging

from . import _native
from ._errors import wrong

_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t)
# The library's levels as logging's; tracing has no name there.
_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG, 5: 5}
_NAMES = {"error": 1, "warn": 2, "warning": 2, "info": 3, "debug": 4, "trace": 5}
_OWN = ("level", "target", "message")

_current: object = None  # The hook in use, which must not be collected.


def _number(level: object) -> int:
    if isinstance(level, str) and level.lower() in _NAMES:
        return _NAMES[level.lower()]
    if isinstance(level, int) and not isinstance(level, bool):
        return next((number for number, theirs in _LEVELS.items() if level >= theirs), 5)
    raise wrong(f"the log level is {level!r}, expected one of {', '.join(_NAMES)}, a level of logging, or None")


def set_log(level: str | int | None, logger: logging.Logger | None = None) -> None:
    """Hands each line of the library's log up to ``level`` to ``logger`` (by default ``logging.getLogger("libapa")``).

    ``level`` is a name (``"info"``, ``"trace"``) or one of logging's numbers; None ends it. A record's ``apa`` has the line as a
    dict: ``level``, ``target`` (which part of the library says it), ``message`` and fields of its own. One logger a process: the
    last one counts. Handlers run on the library's threads, and what logs waits for them; they must not call an engine, and what
    they raise goes to ``sys.unraisablehook``.
    """
    global _current
    if level is None:
        _native.call("apa_log_set", 1, None, None)
        _current = None
        return
    number = _number(level)
    receiver = logging.getLogger("libapa") if logger is None else logger

    def tell(_: int | None, level: int, data: int, size: int) -> None:
        theirs = _LEVELS.get(level, logging.ERROR)
        if receiver.isEnabledFor(theirs):
            line = json.loads(ctypes.string_at(data, size))
            fields = "".join(f" {name}={value}" for name, value in line.items() if name not in _OWN)
            receiver.log(theirs, "%s: %s%s", line.get("target"), line.get("message"), fields, extra={"apa": line})

    hook = _HOOK(tell)
    _native.call("apa_log_set", number, ctypes.cast(hook, ctypes.c_void_p), None)
    _current = hook  # The earlier one is not running any more.


def _at_exit() -> None:
    # After the engines' ends, which were registered later; before the interpreter's.
    if _current is not None and not _native.forked():
        set_log(None)


atexit.register(_at_exit)
