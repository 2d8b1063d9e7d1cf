"""The dicts that go in and come out, as types for type checkers. Checks nothing when it runs: the library does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class TextPart(TypedDict):
    """A part of a message's text."""

    type: Literal["text"]
    text: str


Content = str | Sequence[TextPart]


class CalledFunction(TypedDict):
    """``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the model wants made; ``id`` is for the message that answers it."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class _MessageRole(TypedDict):
    role: str


class Message(_MessageRole, total=False):
    """``role`` is ``system``, ``developer``, ``user``, ``assistant``, ``tool`` or what else the template knows."""

    content: Content | None
    name: str
    refusal: str | None
    reasoning_content: str | None
    tool_calls: Sequence[ToolCall] | None
    tool_call_id: str


class _FunctionName(TypedDict):
    name: str


class Function(_FunctionName, total=False):
    """``parameters`` is the JSON schema of its arguments, an object."""

    description: str
    parameters: Mapping[str, Any]
    strict: bool | None


class Tool(TypedDict):
    """A function that the model may call; the application makes the call, and answers with a message of role ``tool``."""

    type: Literal["function"]
    function: Function


class Sampling(TypedDict, total=False):
    """How to sample, and for whom. ``temperature`` 0 is greedy; 1 is the plain policy."""

    max_tokens: int
    max_completion_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[str, float]
    response_format: Mapping[str, Any]
    grammar: str
    seed: int
    stop: str | Sequence[str]
    user: str
    model: str
    n: Literal[1]
    parse_special: bool


class _Messages(TypedDict):
    messages: Sequence[Message]


class ChatRequest(_Messages, Sampling, total=False):
    """A chat, through the model's own template. ``tool_choice`` is ``none``, ``auto``, ``required`` or a tool by its name.

    The answer goes on with a last message of the assistant that calls no tools, unless ``continue_final_message`` is false.
    """

    logprobs: bool
    top_logprobs: int
    tools: Sequence[Tool]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    continue_final_message: bool
    add_generation_prompt: bool


class _Prompt(TypedDict):
    prompt: str | Sequence[int]


class CompletionRequest(_Prompt, Sampling, total=False):
    """Plain text or tokens, continued. ``logprobs``: those of each token, and of this many most probable ones, up to 5."""

    logprobs: int | bool


class Alternative(TypedDict):
    """A token that might have been sampled. ``logprob``: under the plain model at temperature 1, in nats; at least -9999."""

    token: str
    logprob: float
    bytes: list[int]
    id: int


class TokenLogprob(Alternative):
    """A token that was sampled, and the most probable ones there."""

    top_logprobs: list[Alternative]


class Usage(TypedDict):
    """In tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Result(TypedDict):
    id: str
    policy_version: int
    text: str
    finish_reason: Literal["stop", "length", "cancelled"]
    seed: int
    usage: Usage


class Result(_Result, total=False):
    """``id`` names the answer, for feedback; ``policy_version`` the weights that made every token of it.

    ``tool_calls``: the calls that are in ``text``, where the request has tools. ``logprobs``: a token each, if they were asked for.
    ``recorded``, False: it could not be recorded, and can't be rated.
    """

    tool_calls: list[ToolCall]
    logprobs: list[TokenLogprob]
    recorded: bool


class _Receipt(TypedDict):
    feedback_id: int
    generation_id: str
    policy_version: int
    replaces_earlier: bool


class Receipt(_Receipt, total=False):
    """``left_out``: why it doesn't teach, though it is kept: a limit, or that it was said before. ``spooled``, True: it waits on this
    machine while the database of ``ledger.url`` is away, and its number is 0."""

    left_out: str
    spooled: bool


class Preference(TypedDict):
    """Of :meth:`Engine.prefer`."""

    preference_id: int


class SampleReceipt(TypedDict):
    """Of :meth:`Engine.add_sample`."""

    generation_id: str
    feedback_id: int | None
    policy_version: int


class Forgotten(TypedDict):
    """Numbers of deleted rows. ``overwritten`` is False while another program reads the ledger, whose log still holds them."""

    generations: int
    feedback: int
    preferences: int
    samples: int
    overwritten: bool


class UnlearnPlan(TypedDict):
    """What it takes to replace the versions that learned from a user.

    ``first``: the first of them; it and all later ones are removed, ``versions`` in number. ``back``: the last ancestor of the active
    version that did not. ``start``: where the replay begins. ``batches`` and ``answers``: what is trained on again; ``wordless``:
    answers of those that are no longer on record. ``seconds``: what those batches took at first.
    """

    first: int
    back: int
    start: int
    versions: int
    batches: int
    answers: int
    wordless: int
    seconds: float


class Unlearned(Forgotten):
    """Of :meth:`Engine.unlearn`; ``unlearning`` is None if no version learned from the user."""

    unlearning: UnlearnPlan | None


#: What a batch measured: lengths in tokens, KL in nats, times in seconds; None where there was nothing to measure.
Metrics = dict[str, Any]


class Version(TypedDict):
    """``parent`` is None for the initial model; ``created`` is in milliseconds since 1970."""

    version: int
    parent: int | None
    active: bool
    created: int
    metrics: Metrics


class Verdict(TypedDict):
    """What was decided about a candidate, and why; ``parent`` is the version that it was compared with."""

    parent: int
    ruling: Literal["promoted", "refused", "trial", "proposed", "rolled_back", "unlearned"]
    record: dict[str, Any]


class VersionRecord(Version):
    """``lineage``: the versions it goes back to, its parent first."""

    lineage: list[int]
    verdict: Verdict | None


class Published(TypedDict):
    """A new version is served."""

    outcome: Literal["published"]
    version: int
    metrics: Metrics


class Pending(TypedDict):
    """Trained, but not yet served to everyone."""

    outcome: Literal["pending"]
    version: int
    ruling: Literal["trial", "proposed"]
    reason: str
    metrics: Metrics


class Skipped(TypedDict):
    """Nothing was published; ``consumed`` ratings are used up."""

    outcome: Literal["skipped"]
    reason: str
    consumed: int


Step = Published | Pending | Skipped


class TrainerStatus(TypedDict):
    """``auto``: whether it trains by itself when a batch is in."""

    state: Literal["off", "unsupported", "loading", "idle", "training"]
    reason: str | None
    auto: bool
    pending_ratings: int
    batch: int
    steps: int
    skipped: int
    dropped_steps: int
    refused: int
    rolled_back: int
    proposals: list[int]
    trial: dict[str, Any] | None
    last: Metrics | None


class Status(TypedDict):
    """Numbers since the start."""

    model: str
    architecture: str
    policy_version: int
    serving_versions: list[int]
    running: int
    queued: int
    completed: int
    refused: int
    generated_tokens: int
    prompt_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    swaps: int
    trainer: TrainerStatus
    alerts: list[dict[str, str]]


class StepDone(TypedDict):
    """A batch was trained on."""

    event: Literal["step_done"]
    version: int
    metrics: Metrics


class StepDropped(TypedDict):
    """A batch changed nothing."""

    event: Literal["step_dropped"]
    reason: str
    consumed: int


class VersionPublished(TypedDict):
    """A version is there."""

    event: Literal["version_published"]
    version: int
    parent: int


class VersionActivated(TypedDict):
    """Somebody chose a version."""

    event: Literal["version_activated"]
    version: int


class VersionProposed(TypedDict):
    """A candidate waits for a person (``gate.mode`` is propose); ``parent`` serves."""

    event: Literal["version_proposed"]
    version: int
    parent: int
    reason: str


class TrialStarted(TypedDict):
    """A candidate is served to a share of the users."""

    event: Literal["trial_started"]
    version: int
    parent: int
    share: float


class TrialAdvanced(TypedDict):
    """The candidate is served to a larger share of the users."""

    event: Literal["trial_advanced"]
    version: int
    share: float


class VersionRefused(TypedDict):
    """A candidate was refused; ``version`` is none if it never got one."""

    event: Literal["version_refused"]
    version: int | None
    reason: str


class VersionRolledBack(TypedDict):
    """Its users' ratings fell, and ``parent`` serves again."""

    event: Literal["version_rolled_back"]
    version: int
    parent: int
    reason: str


class UnlearningProgress(TypedDict):
    """Batches that were trained on again without a forgotten user's samples."""

    event: Literal["unlearning"]
    replayed: int
    batches: int


class UnlearningDone(TypedDict):
    """Versions that learned from a forgotten user are removed; ``version`` took their place, or ``parent`` did."""

    event: Literal["unlearned"]
    version: int | None
    parent: int
    reason: str


class Failed(TypedDict):
    """Something failed."""

    event: Literal["error"]
    code: str
    message: str


class Missed(TypedDict):
    """The oldest were dropped, so many."""

    event: Literal["missed"]
    count: int


Event = (
    StepDone
    | StepDropped
    | VersionPublished
    | VersionActivated
    | VersionProposed
    | TrialStarted
    | TrialAdvanced
    | VersionRefused
    | VersionRolledBack
    | UnlearningProgress
    | UnlearningDone
    | Failed
    | Missed
)


class Score(TypedDict):
    """An answer to be scored; ``prompt`` is as the model saw it."""

    event: Literal["answer"]
    generation_id: str
    policy_version: int
    prompt: str
    text: str
    finish_reason: Literal["stop", "length"]
    completion_tokens: int
    user: str | None


Answer = Score
