"""Finds libapa.so, checks its interface, declares its functions and calls them. Never opens an engine."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from ._errors import UNSUPPORTED, ApaError, wrong

#: The interface that this package is written for: APA_ABI_VERSION of apa.h.
INTERFACE = (1, 2)

OK, DONE, TIMEOUT, CANCELLED = 0, 1, 2, 3

_TEXT = (c_char_p, c_size_t)
_OUT = (POINTER(c_void_p),)
_VERSION = (c_uint64,)
_VERSION_OUT = (POINTER(c_uint64),)

#: The parameters of what can fail, without the last, the error.
_FALLIBLE: dict[str, tuple[Any, ...]] = {
    "apa_options_new": _OUT,
    "apa_options_set_json": (c_void_p, *_TEXT, *_TEXT),
    "apa_engine_open": (c_void_p, *_OUT),
    "apa_engine_shutdown": (c_void_p,),
    "apa_engine_status": (c_void_p, *_OUT),
    "apa_engine_metrics": (c_void_p, *_OUT),
    "apa_token_count": (c_void_p, *_TEXT, POINTER(c_size_t)),
    "apa_chat_render": (c_void_p, *_TEXT, *_OUT, POINTER(c_size_t)),
    "apa_gen_start": (c_void_p, *_TEXT, *_OUT),
    "apa_gen_id": (c_void_p, *_OUT),
    "apa_gen_next": (c_void_p, c_int64, *_OUT),
    "apa_gen_result": (c_void_p, *_OUT),
    "apa_gen_cancel": (c_void_p,),
    "apa_gen_set_wake": (c_void_p, c_void_p, c_void_p),
    "apa_feedback": (c_void_p, *_TEXT, *_OUT),
    "apa_preference": (c_void_p, *_TEXT, *_OUT),
    "apa_sample_add": (c_void_p, *_TEXT, *_OUT),
    "apa_forget": (c_void_p, *_TEXT, *_OUT),
    "apa_unlearn_plan": (c_void_p, *_TEXT, *_OUT),
    "apa_unlearn": (c_void_p, *_TEXT, *_OUT),
    "apa_trainer_start": (c_void_p,),
    "apa_trainer_stop": (c_void_p,),
    "apa_trainer_step": (c_void_p, *_OUT),
    "apa_trainer_status": (c_void_p, *_OUT),
    "apa_policy_version": (c_void_p, *_VERSION_OUT),
    "apa_policy_sync": (c_void_p, *_VERSION_OUT),
    "apa_policy_activate": (c_void_p, *_VERSION),
    "apa_policy_rollback": (c_void_p, *_VERSION_OUT),
    "apa_policy_snapshot": (c_void_p, *_VERSION, *_TEXT),
    "apa_policy_restore": (c_void_p, *_TEXT, *_VERSION_OUT),
    "apa_policy_show": (c_void_p, *_VERSION, *_OUT),
    "apa_policy_list": (c_void_p, *_OUT),
    "apa_events_open": (c_void_p, *_OUT),
    "apa_rewards_open": (c_void_p, *_OUT),
    "apa_feed_next": (c_void_p, c_int64, *_OUT),
    "apa_feed_set_wake": (c_void_p, c_void_p, c_void_p),
    "apa_reward_put": (c_void_p, *_TEXT, c_double),
    "apa_reward_set": (c_void_p, c_void_p, c_void_p),
    "apa_http_start": (c_void_p, *_TEXT, *_OUT),
    "apa_http_stop": (c_void_p,),
    "apa_log_set": (c_int32, c_void_p, c_void_p),
}

#: The others: what they give, and their parameters.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "apa_abi_version": (c_uint32,),
    "apa_version": (c_char_p,),
    "apa_has": (c_int32, *_TEXT),
    "apa_error_message": (c_char_p, c_void_p),
    "apa_error_free": (None, c_void_p),
    "apa_string_data": (c_void_p, c_void_p),
    "apa_string_len": (c_size_t, c_void_p),
    "apa_string_free": (None, c_void_p),
    "apa_options_free": (None, c_void_p),
    "apa_engine_free": (None, c_void_p),
    "apa_gen_free": (None, c_void_p),
    "apa_feed_free": (None, c_void_p),
}


def _candidates() -> tuple[list[str], str]:
    """Where the library may be, the first place that has it counting, and who says so."""
    if named := os.environ.get("APA_LIB"):
        return [named], "APA_LIB"
    if folder := os.environ.get("APA_LIB_DIR"):
        return [str(Path(folder) / "libapa.so")], "APA_LIB_DIR"
    inside = Path(__file__).parent / "lib" / "libapa.so"
    if inside.exists():
        return [str(inside)], "this package"
    return [f"libapa.so.{INTERFACE[0]}", "libapa.so"], "the system's loader"


def _load() -> tuple[ctypes.CDLL, str]:
    places, source = _candidates()
    said = []
    for place in places:
        try:
            return ctypes.CDLL(place), place
        except OSError as error:
            said.append(str(error))
    raise ImportError(
        f"libapa.so can't be loaded ({source} names it): {'; '.join(said)}. APA_LIB names the file, APA_LIB_DIR its folder; "
        "`make install` of libapa puts it where the system's loader looks, and a wheel of `make dist` brings it along"
    )


def _checked() -> tuple[ctypes.CDLL, str]:
    library, place = _load()
    try:
        library.apa_abi_version.restype = c_uint32
        found = library.apa_abi_version()
    except AttributeError as error:
        raise ImportError(f"{place} is not libapa: {error}") from None
    major, minor = found >> 16, found & 0xFFFF
    if major != INTERFACE[0] or minor < INTERFACE[1]:
        wanted = ".".join(map(str, INTERFACE))
        raise ImportError(
            f"{place} has interface {major}.{minor}, expected {wanted} or a newer {INTERFACE[0]}.x: "
            "the library and this package have to be of versions that fit"
        )
    for name, parameters in _FALLIBLE.items():
        function = getattr(library, name)
        function.restype, function.argtypes = c_int32, [*parameters, POINTER(c_void_p)]
    for name, (result, *rest) in _PLAIN.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, rest
    return library, place


_library, PATH = _checked()

# The library's threads don't follow into a forked process, and its locks may be held there forever.
_opened = False
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = _opened


os.register_at_fork(after_in_child=_after_fork)


def forked() -> bool:
    """Whether this process can't use the library."""
    return _forked


def mark_opened() -> None:
    """From now on a forked process can't use the library."""
    global _opened
    _opened = True


def call(function: str, *arguments: Any) -> int:
    """Calls what can fail; gives its outcome, never negative. Other threads of Python run meanwhile."""
    if _forked:
        raise ApaError(
            UNSUPPORTED,
            "this process was forked from one that had opened an engine, and can't use libapa: fork before, "
            "or start it anew (multiprocessing's method `spawn` or `forkserver`)",
        )
    error = c_void_p()
    status: int = getattr(_library, function)(*arguments, byref(error))
    if status < 0:
        message = _library.apa_error_message(error).decode("utf-8", "replace")
        _library.apa_error_free(error)
        raise ApaError(status, message)
    return status


def take(string: c_void_p) -> str:
    """The text of an apa_string, which is freed."""
    data = ctypes.string_at(_library.apa_string_data(string), _library.apa_string_len(string))
    _library.apa_string_free(string)
    return data.decode("utf-8", "replace")


def ask(function: str, *arguments: Any) -> str:
    """Calls what writes a text as its last result."""
    out = c_void_p()
    call(function, *arguments, byref(out))
    return take(out)


def new(function: str, *arguments: Any) -> int:
    """Calls what makes a handle, which the caller frees."""
    out = c_void_p()
    call(function, *arguments, byref(out))
    return out.value or 0


def number(function: str, *arguments: Any) -> int:
    """Calls what writes a version as its last result."""
    out = c_uint64()
    call(function, *arguments, byref(out))
    return out.value


def free(function: str, handle: int) -> None:
    """Frees a handle; a second time does nothing."""
    if not _forked:
        getattr(_library, function)(handle)


def text(name: str, value: object) -> tuple[bytes, int]:
    """Text as the library takes it: bytes and their number."""
    if not isinstance(value, str):
        raise wrong(f"{name} is of type {type(value).__name__}, expected str")
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise wrong(f"{name} is not Unicode text: {error.reason} at character {error.start}") from None
    return data, len(data)


def body(name: str, value: object) -> tuple[bytes, int]:
    """JSON as the library takes it. What JSON can't say is refused, not changed."""
    try:
        data = json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise wrong(f"{name} can't be written as JSON: {error}") from None
    return data, len(data)


def given(**fields: object) -> Mapping[str, object]:
    """The fields that were given."""
    return {name: value for name, value in fields.items() if value is not None}


def has(feature: str) -> bool:
    """Whether the library was built with a feature: ``train``, ``log``, ``http``, ``train-cuda``, ``serve-cuda``."""
    return bool(_library.apa_has(*text("the feature", feature)))


#: The library's own version.
version: str = _library.apa_version().decode()
#: The interface of the library that is loaded: major and minor.
abi_version: tuple[int, int] = (_library.apa_abi_version() >> 16, _library.apa_abi_version() & 0xFFFF)
