"""Serves a language model in this process and keeps aligning it with the people who use it.

:class:`Engine` is for threads, :class:`AsyncEngine` for asyncio. Failures are :class:`ApaError`.
"""

__version__ = "0.1.0"

from ._aio import AsyncEngine, AsyncFeed, AsyncStream
from ._engine import Engine
from ._errors import ApaError
from ._log import set_log
from ._native import PATH as library_path
from ._native import abi_version, has, version
from ._streams import Feed, Stream
from ._types import (
    Answer,
    ChatRequest,
    CompletionRequest,
    Event,
    Forgotten,
    Message,
    Metrics,
    Missed,
    Preference,
    Receipt,
    Result,
    SampleReceipt,
    Score,
    Status,
    Step,
    TokenLogprob,
    Tool,
    ToolCall,
    TrainerStatus,
    Unlearned,
    UnlearnPlan,
    Usage,
    Verdict,
    Version,
    VersionRecord,
)

__all__ = [
    "Answer",
    "ApaError",
    "AsyncEngine",
    "AsyncFeed",
    "AsyncStream",
    "ChatRequest",
    "CompletionRequest",
    "Engine",
    "Event",
    "Feed",
    "Forgotten",
    "Message",
    "Metrics",
    "Missed",
    "Preference",
    "Receipt",
    "Result",
    "SampleReceipt",
    "Score",
    "Status",
    "Step",
    "Stream",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "TrainerStatus",
    "UnlearnPlan",
    "Unlearned",
    "Usage",
    "Verdict",
    "Version",
    "VersionRecord",
    "abi_version",
    "has",
    "library_path",
    "set_log",
    "version",
]
