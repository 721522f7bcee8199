"""Every exception gemmantle raises on purpose, in one tree (spec api E-3).

    GemmantleError
    ├── LoadError                     a checkpoint could not become an engine
    │   ├── ModelNotFound             also FileNotFoundError: no such folder, file or name
    │   ├── GatedModel                the name exists, its licence was not accepted
    │   ├── CorruptFile               also ValueError: the bytes contradict themselves
    │   ├── UnsupportedModel          also ValueError: a sound file of something this build does not run
    │   ├── UnsupportedHardware       also RuntimeError: the device asked for is not there
    │   ├── DriverTooOld              also RuntimeError: the device is there, its driver is not enough
    │   └── OutOfMemory               also MemoryError: weights or cache do not fit
    ├── RequestError                  also ValueError: one request is wrong; has code, param, status (spec api 8)
    ├── ForkedEngineError             also RuntimeError: an engine of the parent process was used after fork()
    ├── EngineClosed                  also RuntimeError: the engine was closed before or during the call
    ├── DeviceError                   also RuntimeError: the device failed; open the engine again
    └── InternalError                 also RuntimeError: a bug of ours

Each class derives from the builtin that people already catch. Nothing here imports anything else of the package: the
native module looks its exceptions up in this file.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CorruptFile",
    "DeviceError",
    "DriverTooOld",
    "EngineClosed",
    "ForkedEngineError",
    "GatedModel",
    "GemmantleError",
    "InternalError",
    "LoadError",
    "ModelNotFound",
    "OutOfMemory",
    "RequestError",
    "UnsupportedHardware",
    "UnsupportedModel",
]


class GemmantleError(Exception):
    """The root: catch this to catch everything gemmantle raises on purpose."""


class LoadError(GemmantleError):
    """A checkpoint could not become an engine."""


class ModelNotFound(LoadError, FileNotFoundError):
    """No such folder, file or known name; the message lists what is there."""


class GatedModel(LoadError):
    """The model exists, but its licence has to be accepted first."""


class CorruptFile(LoadError, ValueError):
    """A file contradicts itself: truncated, overlapping, wrong shape, numbers that are not finite."""


class UnsupportedModel(LoadError, ValueError):
    """The file is sound, but holds an architecture, format or size that this build does not run."""


class UnsupportedHardware(LoadError, RuntimeError):
    """The device asked for is absent or lacks an instruction set or feature that is needed."""


class DriverTooOld(LoadError, RuntimeError):
    """The device is there, but its driver is older than this build needs."""


class OutOfMemory(LoadError, MemoryError):
    """Something does not fit. All sizes are bytes; None where nobody could tell."""

    def __init__(
        self,
        message: str,
        *,
        needed: int | None = None,
        free: int | None = None,
        total: int | None = None,
        by_part: dict[str, int] | None = None,
        suggestions: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free
        self.total = total
        self.by_part = dict(by_part or {})
        self.suggestions = list(suggestions)


class RequestError(GemmantleError, ValueError):
    """One request cannot be answered; the engine lives on.

    code: one of spec api 8, for example "invalid_value". param: path of the field, for example "messages[2].content".
    status: the HTTP status the same mistake gets through the client, by default the one of its code.
    """

    def __init__(
        self, message: str, *, code: str = "invalid_value", param: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = REQUEST_STATUS.get(code, 400) if status is None else status

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_request_error, (str(self), self.code, self.param, self.status)


class ForkedEngineError(GemmantleError, RuntimeError):
    """An engine made before fork() was used in the child: its threads do not exist there."""


class EngineClosed(GemmantleError, RuntimeError):
    """The engine was closed before or during the call."""


class DeviceError(GemmantleError, RuntimeError):
    """The device failed; the engine has to be opened again."""


class InternalError(GemmantleError, RuntimeError):
    """A broken invariant of ours: please report it."""


# Codes of RequestError whose HTTP status is not 400 (spec api 8).
REQUEST_STATUS = {
    "model_not_found": 404,
    "response_not_found": 404,
    "completion_not_found": 404,
    "file_not_found": 404,
    "batch_not_found": 404,
    "unknown_url": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "response_not_cancellable": 409,
    "batch_not_cancellable": 409,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "engine_busy": 429,
    "request_cancelled": 499,
}


def _rebuild_request_error(message: str, code: str, param: str | None, status: int) -> RequestError:
    return RequestError(message, code=code, param=param, status=status)
