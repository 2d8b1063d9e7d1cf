"""The engine for asyncio. Waiting takes no thread; what writes to the disk or trains runs on the loop's default executor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from ._engine import Engine, Thumbs
from ._errors import wrong
from ._pulls import Ended, Generation, News, Pull
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
from ._wake import Hub, hook

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self, Unpack

T = TypeVar("T")


class _Turns(Generic[T]):
    """Takes pieces of a pull, one caller at a time, in their order."""

    def __init__(self, pull: Pull[T]) -> None:
        self._pull = pull
        self._hub = Hub.here()
        self._turn = asyncio.Lock()
        self._late: T | None = None  # Came when its caller had left.
        self._hooked = False

    async def next(self, timeout: float | None) -> T:
        if asyncio.get_running_loop() is not self._hub.loop:
            raise wrong("the stream belongs to another event loop")
        if timeout is None:
            async with self._turn:
                return await self._next()
        if not self._turn.locked() and (found := self._now()) is not None:
            return found
        # Not wait_for: a piece that comes with the timeout would be lost.
        task = asyncio.ensure_future(self.next(None))
        try:
            done, _ = await asyncio.wait([task], timeout=timeout)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            raise TimeoutError(f"nothing came within {timeout} s")
        return task.result()

    def _now(self) -> T | None:
        """What is there."""
        if self._late is not None:
            piece, self._late = self._late, None
            return piece
        return self._pull.take(0)

    async def _next(self) -> T:
        # Also where there is always more, others have their turn.
        await asyncio.sleep(0)
        if (found := self._now()) is not None:
            return found
        if not self._hooked:
            self._hooked = True
            hook(self._pull)
        waiter = self._hub.expect(self._pull)
        try:
            found = self._pull.take(0)
            if found is not None:
                return found
            return cast(T, await waiter)
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._late = waiter.result()
            raise
        finally:
            self._hub.leave(waiter)

    def closed(self) -> None:
        """Whoever waits looks again, and finds it closed."""
        self._late = None
        self._hub.ring()


class AsyncStream:
    """An answer being made. Iterating gives its text in whole codepoints.

    Leaving an ``async with`` block, forgetting the stream, or cancelling a task that waits for it ends the generation.
    """

    def __init__(self, generation: Generation, engine: Engine) -> None:
        self._generation = generation
        self._engine = engine  # Not collected before what runs on it.
        self._turns = _Turns(generation)

    @property
    def id(self) -> str:
        """Names the answer, for feedback."""
        return self._generation.id

    async def _next(self, timeout: float | None) -> str:
        try:
            return await self._turns.next(timeout)
        except asyncio.CancelledError:
            self.close()
            raise

    async def read(self, timeout: float | None = None) -> str:
        """More text; ``""`` once the answer has ended. Raises TimeoutError if none came within ``timeout`` seconds."""
        try:
            return await self._next(timeout)
        except Ended:
            return ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            return await self._next(None)
        except Ended:
            raise StopAsyncIteration from None

    async def result(self) -> Result:
        """The whole answer, once it has ended; pulls what is left of it."""
        while await self.read():
            pass
        return self._generation.result()

    def cancel(self) -> None:
        """Asks it to end. What has been made still comes, with ``finish_reason`` ``cancelled``."""
        self._generation.cancel()

    def close(self) -> None:
        """Ends and frees it."""
        self._generation.close()
        self._turns.closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncFeed(Generic[T]):
    """News, from its opening on: the newest 256 are kept. It ends with the engine."""

    def __init__(self, news: News[T], engine: Engine) -> None:
        self._news = news
        self._engine = engine
        self._turns = _Turns(news)

    async def read(self, timeout: float | None = None) -> T | None:
        """The next; None once the feed has ended. Raises TimeoutError if none came within ``timeout`` seconds."""
        try:
            return await self._turns.next(timeout)
        except Ended:
            return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._turns.next(None)
        except Ended:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Ends it."""
        self._news.close()
        self._turns.closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _close_late(opening: asyncio.Future[Engine]) -> None:
    """Nobody waits for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().close, name="libapa-close").start()


class AsyncEngine:
    """A serving, learning model, for asyncio. It has the calls of :class:`Engine`, by which it is made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    async def open(
        cls,
        model: str | PathLike[str],
        data: str | PathLike[str] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """As :class:`Engine` does. If it is cancelled meanwhile, what is loaded by then is closed."""
        opening = asyncio.ensure_future(asyncio.to_thread(Engine, model, data, settings=settings))
        try:
            return cls(await asyncio.shield(opening))
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise

    async def close(self) -> None:
        """Ends what runs, with ``APA_ERR_CLOSED``, and frees the data folder."""
        await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    def generate(self, **request: Unpack[ChatRequest]) -> AsyncStream: ...
    @overload
    def generate(self, **request: Unpack[CompletionRequest]) -> AsyncStream: ...
    def generate(self, **request: Any) -> AsyncStream:
        """Queues a generation; see :meth:`Engine.generate`. To be called where the loop runs."""
        return AsyncStream(self._engine._start(request), self._engine)

    @overload
    async def complete(self, **request: Unpack[ChatRequest]) -> Result: ...
    @overload
    async def complete(self, **request: Unpack[CompletionRequest]) -> Result: ...
    async def complete(self, **request: Any) -> Result:
        """The whole answer."""
        return await self.generate(**request).result()

    async def chat(self, messages: Sequence[Message], **sampling: Unpack[Sampling]) -> Result:
        """Answers a conversation."""
        return await self.generate(messages=messages, **sampling).result()

    async def feedback(
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
        """Records what a person said of an answer; see :meth:`Engine.feedback`."""
        return await asyncio.to_thread(
            self._engine.feedback,
            generation_id,
            rating=rating,
            thumbs=thumbs,
            correction=correction,
            signal=signal,
            user=user,
            comment=comment,
        )

    async def prefer(self, chosen_id: str, rejected_id: str, *, user: str | None = None) -> Preference:
        """Records that one answer is better than another."""
        return await asyncio.to_thread(self._engine.prefer, chosen_id, rejected_id, user=user)

    async def add_sample(
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
        """Records an answer made elsewhere; see :meth:`Engine.add_sample`."""
        return await asyncio.to_thread(
            self._engine.add_sample,
            completion,
            messages=messages,
            prompt=prompt,
            reward=reward,
            temperature=temperature,
            user=user,
            parse_special=parse_special,
        )

    async def forget(self, user: str) -> Forgotten:
        """Deletes a user's words; see :meth:`Engine.forget`."""
        return await asyncio.to_thread(self._engine.forget, user)

    async def unlearn_plan(self, user: str) -> UnlearnPlan | None:
        """What :meth:`unlearn` takes; changes nothing. None if no version learned from the user."""
        return await asyncio.to_thread(self._engine.unlearn_plan, user)

    async def unlearn(self, user: str) -> Unlearned:
        """Deletes a user's words and replaces what learned from them; see :meth:`Engine.unlearn`."""
        return await asyncio.to_thread(self._engine.unlearn, user)

    async def reward(self, generation_id: str, reward: float) -> None:
        """Gives an answer its reward, -1 to 1."""
        await asyncio.to_thread(self._engine.reward, generation_id, reward)

    async def set_reward(self, score: Callable[[Score], float | None] | None) -> None:
        """Has ``score`` called for each answer, on a thread of the library; see :meth:`Engine.set_reward`."""
        await asyncio.to_thread(self._engine.set_reward, score)

    def events(self) -> AsyncFeed[Event]:
        """What the engine learns, from now on. To be called where the loop runs."""
        return AsyncFeed(self._engine._events(), self._engine)

    def answers(self) -> AsyncFeed[Answer | Missed]:
        """Answers that ended, from now on, to be scored by :meth:`reward`. To be called where the loop runs."""
        return AsyncFeed(self._engine._answers(), self._engine)

    async def train_step(self) -> Step:
        """Trains on the ratings that are in; see :meth:`Engine.train_step`. Cancelling ends the wait, not the step."""
        return await asyncio.to_thread(self._engine._train_step)

    def start_trainer(self) -> None:
        """Lets the engine train by itself."""
        self._engine.start_trainer()

    def stop_trainer(self) -> None:
        """Has it train by :meth:`train_step` only."""
        self._engine.stop_trainer()

    def trainer_status(self) -> TrainerStatus:
        """What the trainer does."""
        return self._engine.trainer_status()

    def status(self) -> Status:
        """The state of the engine."""
        return self._engine.status()

    def metrics(self) -> str:
        """Numbers in Prometheus' text format."""
        return self._engine.metrics()

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return self._engine.count_tokens(text)

    def render(self, messages: Sequence[Message]) -> str:
        """Messages as the model sees them."""
        return self._engine.render(messages)

    def policy_version(self) -> int:
        """The version that new requests get; 0 is the initial model."""
        return self._engine.policy_version()

    async def versions(self) -> list[Version]:
        """All versions, oldest first."""
        return await asyncio.to_thread(self._engine.versions)

    async def version(self, version: int) -> VersionRecord:
        """A version with the verdict over it."""
        return await asyncio.to_thread(self._engine.version, version)

    async def activate(self, version: int) -> None:
        """Serves a version from now on, and trains on from it."""
        await asyncio.to_thread(self._engine.activate, version)

    async def rollback(self) -> int:
        """Activates the parent of the active version, and gives it."""
        return await asyncio.to_thread(self._engine.rollback)

    async def sync(self) -> int:
        """Serves the newest version now, also after a rollback, and gives it."""
        return await asyncio.to_thread(self._engine.sync)

    async def snapshot(self, version: int, path: str | PathLike[str]) -> None:
        """Writes a version into one file."""
        await asyncio.to_thread(self._engine.snapshot, version, path)

    async def restore(self, path: str | PathLike[str]) -> int:
        """Serves what :meth:`snapshot` wrote, as a new version, and gives it."""
        return await asyncio.to_thread(self._engine.restore, path)

    async def start_http(self, address: str = "") -> str:
        """Serves HTTP beside the application; gives the address."""
        return await asyncio.to_thread(self._engine.start_http, address)

    async def stop_http(self) -> None:
        """Ends it; running answers get 30 seconds."""
        await asyncio.to_thread(self._engine.stop_http)
