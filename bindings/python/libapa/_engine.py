"""The engine for threads: calls that wait let other threads of Python run. Has no state but the handle."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref, c_size_t, c_void_p
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from . import _native
from ._errors import CLOSED, ApaError, wrong
from ._pulls import Generation, News
from ._streams import Feed, Stream
from ._types import (
    Answer,
    ChatRequest,
    CompletionRequest,
    Event,
    Forgotten,
    Message,
    Missed,
    Preference,
    Receipt,
    Result,
    SampleReceipt,
    Sampling,
    Score,
    Status,
    Step,
    TrainerStatus,
    Unlearned,
    UnlearnPlan,
    Version,
    VersionRecord,
)

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

T = TypeVar("T")
Thumbs = Literal["up", "down"]

_SCORER = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_double)
)
_log = logging.getLogger("libapa")


def _path(name: str, value: str | PathLike[str]) -> str:
    try:
        path = os.fspath(value)
    except TypeError:
        raise wrong(f"{name} is of type {type(value).__name__}, expected a path") from None
    return path


def _version(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise wrong(f"the version is {value!r}, expected a whole number")
    return value


def _interruptible(work: Callable[[], T]) -> T:
    """Runs what takes minutes. In the main thread Ctrl-C ends the wait for it, though not the work."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)
        ended.set()

    threading.Thread(target=run, name="libapa-call", daemon=True).start()
    ended.wait()
    if failed:
        raise failed[0]
    return done[0]


def _free(handle: int, kept: list[object]) -> None:
    _native.free("apa_engine_free", handle)
    kept.clear()  # What the library called until then.


class Engine:
    """A serving, learning model. Failures are :class:`ApaError`.

    Opening loads the model, recovers what was running, and starts the engine's threads; ``model`` is a GGUF file, ``data`` the folder
    of the record and the versions, one engine a folder. ``settings`` are those of apad.toml by key, the section first:
    ``{"serve.slots": 4, "train": {"lambda": 0.2}}``. Every call may be made from any thread. An engine doesn't survive a fork: a
    process that is forked after it was opened can't use this package.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        data: str | PathLike[str] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen: dict[str, Any] = {**(settings or {}), "model": _path("the model", model)}
        if data is not None:
            chosen["data"] = _path("the data folder", data)
        options = _native.new("apa_options_new")
        try:
            for key, value in chosen.items():
                _native.call("apa_options_set_json", options, *_native.text("a key", key), *_native.body(key, value))
            _native.mark_opened()
            self._handle = _native.new("apa_engine_open", options)
        finally:
            _native.free("apa_options_free", options)
        self._kept: list[object] = []
        self._free = weakref.finalize(self, _free, self._handle, self._kept)

    def close(self) -> None:
        """Ends what runs, with ``APA_ERR_CLOSED``, and frees the data folder."""
        if not self._free.alive:
            return
        try:
            _native.call("apa_engine_shutdown", self._handle)
        except ApaError as error:
            if error.status != CLOSED:  # Another thread was faster.
                raise
        self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, function: str, name: str, fields: object) -> Any:
        """A call that takes JSON and gives JSON."""
        return json.loads(_native.ask(function, self._handle, *_native.body(name, fields)))

    def _start(self, request: Mapping[str, Any]) -> Generation:
        return Generation(_native.new("apa_gen_start", self._handle, *_native.body("the request", request)))

    def _events(self) -> News[Event]:
        return News(_native.new("apa_events_open", self._handle))

    def _answers(self) -> News[Answer | Missed]:
        return News(_native.new("apa_rewards_open", self._handle))

    @overload
    def generate(self, **request: Unpack[ChatRequest]) -> Stream: ...
    @overload
    def generate(self, **request: Unpack[CompletionRequest]) -> Stream: ...
    def generate(self, **request: Any) -> Stream:
        """Queues a generation; the fields are those of the HTTP service. ``APA_ERR_BUSY`` if the queue is full."""
        return Stream(self._start(request), self)

    @overload
    def complete(self, **request: Unpack[ChatRequest]) -> Result: ...
    @overload
    def complete(self, **request: Unpack[CompletionRequest]) -> Result: ...
    def complete(self, **request: Any) -> Result:
        """The whole answer."""
        return Stream(self._start(request), self).result()

    def chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Result:
        """Answers a conversation."""
        return self.generate(messages=messages, **sampling).result()

    def feedback(
        self,
        generation_id: str,
        *,
        rating: float | None = None,
        thumbs: Thumbs | None = None,
        correction: str | None = None,
        signal: str | None = None,
        user: str | None = None,
        comment: str | None = None,
    ) -> Receipt:
        """Records what a person said of an answer; it is on disk when this returns.

        One of ``rating`` (-1 to 1), ``thumbs``, ``correction`` (the answer as it should have been) and ``signal`` (something the user
        did, ``"copied"``; the setting ``reward.signals`` has what each name adds), or a ``comment`` alone.
        """
        said = _native.given(
            generation_id=generation_id,
            rating=rating,
            thumbs=thumbs,
            correction=correction,
            signal=signal,
            user=user,
            comment=comment,
        )
        return cast(Receipt, self._tell("apa_feedback", "the feedback", said))

    def prefer(self, chosen_id: str, rejected_id: str, *, user: str | None = None) -> Preference:
        """Records that one answer is better than another."""
        said = _native.given(chosen_id=chosen_id, rejected_id=rejected_id, user=user)
        return cast(Preference, self._tell("apa_preference", "the preference", said))

    def add_sample(
        self,
        completion: str | Sequence[int],
        *,
        messages: Sequence[Message] | None = None,
        prompt: str | Sequence[int] | None = None,
        reward: float | None = None,
        temperature: float | None = None,
        user: str | None = None,
        parse_special: bool | None = None,
    ) -> SampleReceipt:
        """Records an answer made elsewhere, to ``messages`` or a ``prompt``; without ``reward`` (-1 to 1) it waits for feedback.

        ``temperature`` is that at which it was sampled and is trained, 1 by default.
        """
        sample = _native.given(
            completion=completion,
            messages=messages,
            prompt=prompt,
            reward=reward,
            temperature=temperature,
            user=user,
            parse_special=parse_special,
        )
        return cast(SampleReceipt, self._tell("apa_sample_add", "the sample", sample))

    def forget(self, user: str) -> Forgotten:
        """Deletes a user's words: their answers, what was said of those, what they said. The versions that learned from them remain."""
        return cast(Forgotten, json.loads(_native.ask("apa_forget", self._handle, *_native.text("the user", user))))

    def unlearn_plan(self, user: str) -> UnlearnPlan | None:
        """What :meth:`unlearn` takes; changes nothing. None if no version learned from the user."""
        plan = json.loads(_native.ask("apa_unlearn_plan", self._handle, *_native.text("the user", user)))
        return cast("UnlearnPlan | None", plan["unlearning"])

    def unlearn(self, user: str) -> Unlearned:
        """Deletes a user's words, and has the versions that learned from them replaced by one that trains on the recorded batches without
        them and is judged like any candidate.

        Returns once the words are deleted; events tell of the rest, and an engine that is opened again resumes it. ``APA_ERR_BUSY`` if
        a user is being unlearned.
        """
        return cast(Unlearned, json.loads(_native.ask("apa_unlearn", self._handle, *_native.text("the user", user))))

    def reward(self, generation_id: str, reward: float) -> None:
        """Gives an answer its reward, -1 to 1."""
        if not isinstance(reward, (int, float)):
            raise wrong(f"the reward is of type {type(reward).__name__}, expected a number")
        _native.call("apa_reward_put", self._handle, *_native.text("the id", generation_id), float(reward))

    def set_reward(self, score: Callable[[Score], float | None] | None) -> None:
        """Has ``score`` called for each answer that ends normally, from now on: it gives a reward from -1 to 1, or None for none.

        One function an engine: it replaces the earlier one, and None takes it back; when this returns, the earlier one is not running.
        It runs on a thread of the library that does nothing else, one call at a time, so it may take its time, but it must not call the
        engine. What it raises is logged by ``logging.getLogger("libapa")`` and told by the feed of events; the answer gets no reward.
        """
        if score is None:
            _native.call("apa_reward_set", self._handle, None, None)
            self._kept.clear()
            return
        if not callable(score):
            raise wrong(f"the reward function is of type {type(score).__name__}, expected a function")
        asked = score

        def answer(_: int | None, data: int, size: int, reward: Any) -> int:
            try:
                given = asked(json.loads(ctypes.string_at(data, size)))
                if given is None:
                    return 1
                reward[0] = float(given)
                return 0
            except BaseException:
                _log.exception("the reward function failed")
                return -1

        hook = _SCORER(answer)
        before = list(self._kept)
        self._kept.append(hook)
        try:
            _native.call("apa_reward_set", self._handle, ctypes.cast(hook, c_void_p), None)
        except BaseException:
            self._kept.remove(hook)
            raise
        for old in before:
            self._kept.remove(old)

    def events(self) -> Feed[Event]:
        """What the engine learns, from now on."""
        return Feed(self._events(), self)

    def answers(self) -> Feed[Answer | Missed]:
        """Answers that ended, from now on, to be scored by :meth:`reward`."""
        return Feed(self._answers(), self)

    def _train_step(self) -> Step:
        return cast(Step, json.loads(_native.ask("apa_trainer_step", self._handle)))

    def train_step(self) -> Step:
        """Trains on the ratings that are in, one batch at most, and serves what comes of it. Takes seconds to minutes."""
        return _interruptible(self._train_step)

    def start_trainer(self) -> None:
        """Lets the engine train by itself."""
        _native.call("apa_trainer_start", self._handle)

    def stop_trainer(self) -> None:
        """Has it train by :meth:`train_step` only."""
        _native.call("apa_trainer_stop", self._handle)

    def trainer_status(self) -> TrainerStatus:
        """What the trainer does."""
        return cast(TrainerStatus, json.loads(_native.ask("apa_trainer_status", self._handle)))

    def status(self) -> Status:
        """The state of the engine."""
        return cast(Status, json.loads(_native.ask("apa_engine_status", self._handle)))

    def metrics(self) -> str:
        """Numbers in Prometheus' text format."""
        return _native.ask("apa_engine_metrics", self._handle)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has, with the one that begins a sequence if the model uses it."""
        tokens = c_size_t()
        _native.call("apa_token_count", self._handle, *_native.text("the text", text), byref(tokens))
        return tokens.value

    def render(self, messages: Sequence[Message]) -> str:
        """Messages as the model sees them."""
        out = c_void_p()
        _native.call("apa_chat_render", self._handle, *_native.body("the messages", messages), byref(out), None)
        return _native.take(out)

    def policy_version(self) -> int:
        """The version that new requests get; 0 is the initial model."""
        return _native.number("apa_policy_version", self._handle)

    def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return cast("list[Version]", json.loads(_native.ask("apa_policy_list", self._handle)))

    def version(self, version: int) -> VersionRecord:
        """A version with the verdict over it."""
        return cast(VersionRecord, json.loads(_native.ask("apa_policy_show", self._handle, _version(version))))

    def activate(self, version: int) -> None:
        """Serves a version from now on, and trains on from it."""
        _native.call("apa_policy_activate", self._handle, _version(version))

    def rollback(self) -> int:
        """Activates the parent of the active version, and gives it."""
        return _native.number("apa_policy_rollback", self._handle)

    def sync(self) -> int:
        """Serves the newest version now, also after a rollback, and gives it."""
        return _native.number("apa_policy_sync", self._handle)

    def snapshot(self, version: int, path: str | PathLike[str]) -> None:
        """Writes a version into one file."""
        where = _native.text("the path", _path("the path", path))
        _native.call("apa_policy_snapshot", self._handle, _version(version), *where)

    def restore(self, path: str | PathLike[str]) -> int:
        """Serves what :meth:`snapshot` wrote, as a new version, and gives it."""
        where = _native.text("the path", _path("the path", path))
        return _native.number("apa_policy_restore", self._handle, *where)

    def start_http(self, address: str = "") -> str:
        """Serves HTTP beside the application; gives the address."""
        return _native.ask("apa_http_start", self._handle, *_native.text("the address", address))

    def stop_http(self) -> None:
        """Ends it; running answers get 30 seconds."""
        _native.call("apa_http_stop", self._handle)
