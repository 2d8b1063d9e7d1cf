"""What comes piece by piece from the library: the text of an answer, and news. Waits only in the library, and only as long as told."""

from __future__ import annotations

import json
import weakref
from ctypes import byref, c_void_p
from typing import Any, Generic, TypeVar, cast

from . import _native
from ._errors import CLOSED, ApaError
from ._types import Result

T = TypeVar("T")


class Ended(Exception):
    """Nothing more will come."""


class Pull(Generic[T]):
    """A queue in the library. Freed when it is collected, and at the end of the process."""

    NEXT: str
    WAKE: str
    FREE: str

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.free = weakref.finalize(self, _native.free, self.FREE, handle)

    def take(self, timeout_ms: int) -> T | None:
        """Waits so long for the next piece; None if there was none. Raises Ended."""
        raise NotImplementedError

    def set_wake(self, wake: int, user_data: int) -> None:
        _native.call(self.WAKE, self.handle, wake, user_data)


class Generation(Pull[str]):
    """The text of an answer."""

    NEXT, WAKE, FREE = "apa_gen_next", "apa_gen_set_wake", "apa_gen_free"

    def __init__(self, handle: int) -> None:
        super().__init__(handle)
        self.id = _native.ask("apa_gen_id", handle)
        self._result: Result | None = None
        self._error: ApaError | None = None

    def take(self, timeout_ms: int) -> str | None:
        if self._result is not None:
            raise Ended
        if self._error is not None:
            raise ApaError(self._error.status, self._error.message)
        out = c_void_p()
        try:
            status = _native.call(self.NEXT, self.handle, timeout_ms, byref(out))
            if status == _native.OK:
                return _native.take(out)
            if status == _native.TIMEOUT:
                return None
            result = json.loads(_native.ask("apa_gen_result", self.handle))
        except ApaError as error:
            if self._result is not None:  # Another thread had the end and freed it.
                raise Ended from None
            self._error = error
            self.free()
            raise
        self._result = cast(Result, result)
        self.free()
        raise Ended

    def result(self) -> Result:
        """What has ended."""
        if self._result is None:
            self.take(0)
            raise AssertionError("the answer has not ended")
        return self._result

    def cancel(self) -> None:
        if self._result is None and self._error is None:
            _native.call("apa_gen_cancel", self.handle)

    def close(self) -> None:
        if self._result is None and self._error is None:
            self._error = ApaError(CLOSED, "the stream was closed before the end of the answer")
        self.free()


class News(Pull[T]):
    """Events of a feed."""

    NEXT, WAKE, FREE = "apa_feed_next", "apa_feed_set_wake", "apa_feed_free"

    def take(self, timeout_ms: int) -> T | None:
        out = c_void_p()
        try:
            status = _native.call(self.NEXT, self.handle, timeout_ms, byref(out))
        except ApaError as error:
            self.free()
            if error.status == CLOSED:
                raise Ended from None
            raise
        return cast(Any, json.loads(_native.take(out))) if status == _native.OK else None

    def close(self) -> None:
        self.free()
