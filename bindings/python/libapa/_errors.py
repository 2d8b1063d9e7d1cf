"""How calls of the library fail. Knows no call."""

from __future__ import annotations

ARG = -1
CLOSED = -2
CALLBACK = -7
UNSUPPORTED = -8

_CODES = {
    ARG: "APA_ERR_ARG",
    CLOSED: "APA_ERR_CLOSED",
    -3: "APA_ERR_BUSY",
    -4: "APA_ERR_MODEL",
    -5: "APA_ERR_TRAIN",
    -6: "APA_ERR_IO",
    CALLBACK: "APA_ERR_CALLBACK",
    UNSUPPORTED: "APA_ERR_UNSUPPORTED",
    -9: "APA_ERR_NOMEM",
    -10: "APA_ERR_PANIC",
}


class ApaError(Exception):
    """What went wrong, in one sentence.

    ``status`` is the status of the C API, negative; ``code`` is its name:

    - ``APA_ERR_ARG``: the caller's input is wrong: an option, a request, an unknown id
    - ``APA_ERR_CLOSED``: the engine or stream is closed
    - ``APA_ERR_BUSY``: the queue is full, or another engine holds the data folder
    - ``APA_ERR_MODEL``: the model file is missing, damaged or of another kind, or it could not be run
    - ``APA_ERR_TRAIN``: training failed; serving is untouched
    - ``APA_ERR_IO``: a file, the disk or the record failed
    - ``APA_ERR_CALLBACK``: a function of the application failed
    - ``APA_ERR_UNSUPPORTED``: this build, model, architecture or process can't do that
    - ``APA_ERR_NOMEM``: memory ran out
    - ``APA_ERR_PANIC``: a bug of the library, caught
    """

    status: int
    code: str
    message: str

    def __init__(self, status: int, message: str) -> None:
        # Both are arguments, so that it can be pickled: it may have to cross to another process.
        super().__init__(status, message)
        self.status = status
        self.code = _CODES.get(status, "APA_ERR_UNKNOWN")
        self.message = message

    def __str__(self) -> str:
        return self.message


def wrong(message: str) -> ApaError:
    """The caller's input is wrong."""
    return ApaError(ARG, message)
