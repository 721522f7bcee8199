"""Answers that go on by themselves (spec api 6.5), and what all clients of a process share about stored responses.

One thread, there while something runs, drives every background answer of a `State`. Readers follow an answer's list of
events from any number on; they may come, go and come back, also when it has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Any, Protocol

from gemmantle.api.batches import Batches
from gemmantle.api.chat_store import ChatStore, MemoryChats, SqliteChats
from gemmantle.api.files import Folder
from gemmantle.api.problems import Expired, Problem, problem_of
from gemmantle.api.store import MemoryStore, Record, SqliteStore, Store
from gemmantle.api.stream import Answer, Work, merged, sleep
from gemmantle.errors import RequestError

__all__ = ["BackgroundAnswer", "Following", "Job", "State", "state_at"]

_SLICE_S = 0.05  # a reader notices Ctrl-C and its deadline within this
_LOOK_S = 0.01  # a reader on a loop looks this often


class BackgroundAnswer(Answer, Protocol):
    """An answer that can be looked at and ended while it is being made."""

    name: str

    def snapshot(self) -> dict[str, Any]: ...

    def events_from(self, position: int) -> list[bytes]: ...

    def cancelled(self) -> None: ...

    def save(self) -> None: ...


class Job:
    """One background answer. Its lock guards the answer, which the driving thread and readers share."""

    def __init__(self, work: Work, answer: BackgroundAnswer) -> None:
        self.name = answer.name
        self._work: Work | None = work
        self._answer = answer
        self._changed = threading.Condition()

    @property
    def running(self) -> bool:
        return self._work is not None

    def descriptors(self) -> list[int]:
        work = self._work
        return [] if work is None else work.descriptors()

    def advance(self) -> None:
        """Take what is there. Never raises: a failure is the end of this answer alone."""
        with self._changed:
            if self._work is None:
                return
            try:
                for choice, delta in merged(self._work.ready()):
                    self._answer.feed(choice, delta)
                ended = not self._work.running
            except Exception as exc:
                self._end(problem_of(exc))
            else:
                if ended:
                    self._end(None)
            self._changed.notify_all()

    def cancel(self) -> None:
        """Idempotent: an ended answer stays as it is."""
        with self._changed:
            if self._work is None:
                return
            self._work.cancel()
            self._answer.cancelled()
            self._end(None)
            self._changed.notify_all()

    def _end(self, problem: Problem | None) -> None:
        self._work = None
        if problem is not None:
            self._answer.failed(problem)
        self._answer.save()

    def snapshot(self) -> dict[str, Any]:
        with self._changed:
            return self._answer.snapshot()

    def events(self, position: int) -> tuple[list[bytes], bool]:
        """What there is from `position` on, and whether more may come."""
        with self._changed:
            return self._answer.events_from(position), self.running

    def wait(self, position: int, seconds: float) -> tuple[list[bytes], bool]:
        with self._changed:
            if self.running and not self._answer.events_from(position):
                self._changed.wait(seconds)
            return self._answer.events_from(position), self.running


class Following:
    """The events of a job, or of what is stored of one, as the body of a reply. Dropping it ends nothing."""

    def __init__(self, source: Job | list[bytes], position: int, timeout: float | None) -> None:
        self._source = source
        self._position = position
        self._timeout = timeout
        self._done = False

    def __iter__(self) -> Following:
        return self

    def __aiter__(self) -> Following:
        return self

    def __next__(self) -> bytes:
        deadline = self._deadline()
        while not self._done:
            chunk = self._took(*self._look(_SLICE_S))
            if chunk:
                return chunk
            _check(deadline)
        raise StopIteration

    async def __anext__(self) -> bytes:
        deadline = self._deadline()
        while not self._done:
            chunk = self._took(*self._look(None))
            if chunk:
                return chunk
            if not self._done:
                _check(deadline)
                await sleep(_LOOK_S)
        raise StopAsyncIteration

    def close(self) -> None:
        self._done = True

    async def aclose(self) -> None:
        self.close()

    def _look(self, wait_s: float | None) -> tuple[list[bytes], bool]:
        if isinstance(self._source, list):
            return self._source[self._position :], False
        if wait_s is None:
            return self._source.events(self._position)
        return self._source.wait(self._position, wait_s)

    def _took(self, events: list[bytes], more: bool) -> bytes:
        self._position += len(events)
        self._done = self._done or not more
        return b"".join(events)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Expired


class State:
    """The stored responses and chats of one place, the answers that will end there, and its files and batches."""

    def __init__(self, store: Store, chats: ChatStore, folder: str | None = None) -> None:
        self.store = store
        self.chats = chats
        self._folder_path = folder
        self._folder: Folder | None = None
        self._batches: Batches | None = None
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._driver: threading.Thread | None = None
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)

    @property
    def folder(self) -> Folder:
        """Made when it is needed: most processes upload nothing."""
        with self._lock:
            if self._folder is None:
                self._folder = Folder(self._folder_path)
            return self._folder

    @property
    def batches(self) -> Batches:
        folder = self.folder
        with self._lock:
            if self._batches is None:
                self._batches = Batches(folder)
            return self._batches

    def drive(self, job: Job) -> None:
        """Run a job to its end, whoever reads it."""
        with self._lock:
            self._jobs[job.name] = job
            if self._driver is None:
                self._driver = threading.Thread(target=self._run, name="gemmantle-background", daemon=True)
                self._driver.start()
        self.wake()

    def job(self, name: str) -> Job | None:
        """A job that may still run; what has ended is in the store."""
        with self._lock:
            return self._jobs.get(name)

    def response(self, name: str) -> dict[str, Any] | None:
        job = self.job(name)
        if job is not None:
            return job.snapshot()
        record = self.store.get(name)
        return None if record is None else record.response

    def chain(self, name: str) -> list[Record]:
        """A response and those before it, oldest first."""
        records: list[Record] = []
        link: str | None = name
        while link is not None:
            job = self.job(link)
            record = None if job is not None else self.store.get(link)
            if record is None or record.response["status"] in ("queued", "in_progress"):
                what = "is not stored here" if job is None and record is None else "has not ended yet"
                where = "" if link == name else f", which '{name}' builds upon,"
                raise RequestError(
                    f"response '{link[:100]}'{where} {what}; send the conversation as `input` items instead",
                    code="previous_response_not_found",
                    param="previous_response_id",
                )
            records.append(record)
            link = record.response.get("previous_response_id")
        return records[::-1]

    def _run(self) -> None:
        while True:
            with self._lock:
                for name, job in list(self._jobs.items()):
                    if not job.running:
                        del self._jobs[name]
                if not self._jobs:
                    self._driver = None
                    return
                jobs = list(self._jobs.values())
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            for job in jobs:
                for descriptor in job.descriptors():
                    poll.register(descriptor, select.POLLIN)
            poll.poll(1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            for job in jobs:
                job.advance()

    def wake(self) -> None:
        """Have the driver look again: a job was ended by somebody else."""
        with contextlib.suppress(BlockingIOError):  # full: it will look anyway
            os.write(self._waker, b"w")

    def forget(self, name: str) -> None:
        with self._lock:
            self._jobs.pop(name, None)
        self.wake()

    def __del__(self) -> None:
        for descriptor in (self._woken, self._waker):
            with contextlib.suppress(OSError):
                os.close(descriptor)


_lock = threading.Lock()
_states: dict[str | None, State] = {}
_pid = os.getpid()


def state_at(path: str | os.PathLike[str] | None) -> State:
    """The state of a file, or of this process: one for all clients. A child of fork() starts anew."""
    global _pid, _states
    key = None if path is None else os.path.realpath(path)
    with _lock:
        if _pid != os.getpid():
            _left_by_parent.append(_states)  # closing a database of the parent here would harm the parent's
            _states, _pid = {}, os.getpid()
        if key not in _states:
            if key is None:
                _states[key] = State(MemoryStore(), MemoryChats())
            else:
                _states[key] = State(SqliteStore(key), SqliteChats(key), f"{key}.files")
        return _states[key]


_left_by_parent: list[object] = []
