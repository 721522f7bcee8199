"""Where finished responses are kept (spec api 6.4): in memory, least recently used out first, or in one SQLite file.

Both keep serialised text, so nothing a caller does to an object changes what is stored. A file may be opened by several
processes. What an ended process had left unfinished there is marked as failed by the next one that opens it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["MemoryStore", "Record", "SqliteStore", "Store", "is_alive"]

MAX_RESPONSES = 1000
MAX_BYTES = 256 << 20
_UNFINISHED = ("queued", "in_progress")
_VERSION = 1


@dataclass
class Record:
    """A response, the items of its own input, and for background ones every event from 0 on."""

    response: dict[str, Any]
    items: list[dict[str, Any]]
    events: list[bytes] = field(default_factory=list)

    def item(self, name: str) -> dict[str, Any] | None:
        for item in (*self.items, *self.response["output"]):
            if item.get("id") == name:
                found: dict[str, Any] = item
                return found
        return None


class Store(Protocol):
    """All methods may be called from any thread."""

    def put(self, record: Record) -> None: ...

    def get(self, name: str) -> Record | None: ...

    def delete(self, name: str) -> bool: ...

    def find_item(self, name: str) -> dict[str, Any] | None:
        """An input or output item of any stored response."""


def _pack(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class MemoryStore:
    """The life of the process, within bounds."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._records: OrderedDict[str, tuple[bytes, bytes, list[bytes]]] = OrderedDict()
        self._owners: dict[str, str] = {}  # item -> response
        self._bytes = 0
        self._max_responses = max_responses
        self._max_bytes = max_bytes

    def put(self, record: Record) -> None:
        name = record.response["id"]
        packed = (_pack(record.response), _pack(record.items), list(record.events))
        with self._lock:
            self._remove(name)
            self._records[name] = packed
            self._bytes += _size(packed)
            for item in _item_names(record):
                self._owners.setdefault(item, name)
            while len(self._records) > self._max_responses or (
                self._bytes > self._max_bytes and len(self._records) > 1
            ):
                self._remove(next(iter(self._records)))

    def get(self, name: str) -> Record | None:
        with self._lock:
            packed = self._records.get(name)
            if packed is None:
                return None
            self._records.move_to_end(name)
        return Record(json.loads(packed[0]), json.loads(packed[1]), list(packed[2]))

    def delete(self, name: str) -> bool:
        with self._lock:
            return self._remove(name)

    def find_item(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            owner = self._owners.get(name)
        record = self.get(owner) if owner is not None else None
        return None if record is None else record.item(name)

    def _remove(self, name: str) -> bool:
        packed = self._records.pop(name, None)
        if packed is None:
            return False
        self._bytes -= _size(packed)
        record = Record(json.loads(packed[0]), json.loads(packed[1]))
        for item in _item_names(record):
            if self._owners.get(item) == name:
                del self._owners[item]
        return True


class SqliteStore:
    """A file that outlives the process. OSError and ValueError say what is wrong with it."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        try:
            # Conversations are private: a new file is readable by its owner only.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._prepare(path)
        except sqlite3.Error as exc:
            raise ValueError(f"state_path {path!r} is no file of stored responses: {exc}") from None
        except OSError as exc:
            raise ValueError(f"state_path {path!r} cannot be opened: {exc.strerror}") from None
        self._fail_unfinished()

    def _prepare(self, path: str) -> None:
        [version] = self._db.execute("PRAGMA user_version").fetchone()
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version not in (0, _VERSION) or (version == 0 and tables):
            raise ValueError(
                f"state_path {path!r} has layout {version}; this build reads {_VERSION}: name another file"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(
            "CREATE TABLE IF NOT EXISTS responses (id TEXT PRIMARY KEY, status TEXT NOT NULL, owner INTEGER NOT NULL,"
            " body BLOB NOT NULL, items BLOB NOT NULL, events BLOB NOT NULL);"
            "CREATE TABLE IF NOT EXISTS items (id TEXT PRIMARY KEY, response TEXT NOT NULL);"
            "CREATE INDEX IF NOT EXISTS items_response ON items (response);"
            f"PRAGMA user_version = {_VERSION};"
        )

    def put(self, record: Record) -> None:
        response = record.response
        name = response["id"]
        events = _pack([event.decode("utf-8") for event in record.events])
        row = (name, response["status"], os.getpid(), _pack(response), _pack(record.items), events)
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            self._db.execute("DELETE FROM items WHERE response = ?", (name,))
            owned = [(item, name) for item in _item_names(record)]
            self._db.executemany("INSERT OR IGNORE INTO items VALUES (?, ?)", owned)

    def get(self, name: str) -> Record | None:
        with self._lock:
            row = self._db.execute("SELECT body, items, events FROM responses WHERE id = ?", (name,)).fetchone()
        if row is None:
            return None
        events = [event.encode("utf-8") for event in json.loads(row[2])]
        return Record(json.loads(row[0]), json.loads(row[1]), events)

    def delete(self, name: str) -> bool:
        with self._transaction():
            self._db.execute("DELETE FROM items WHERE response = ?", (name,))
            return self._db.execute("DELETE FROM responses WHERE id = ?", (name,)).rowcount > 0

    def find_item(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            row = self._db.execute("SELECT response FROM items WHERE id = ?", (name,)).fetchone()
        record = None if row is None else self.get(row[0])
        return None if record is None else record.item(name)

    def _fail_unfinished(self) -> None:
        with self._lock:
            rows = self._db.execute("SELECT id, owner FROM responses WHERE status IN (?, ?)", _UNFINISHED).fetchall()
        for name, owner in rows:
            if owner != os.getpid() and is_alive(owner):
                continue
            record = self.get(name)
            if record is not None:
                error = {"code": "server_error", "message": "the process ended before the answer was complete"}
                record.response.update(status="failed", error=error, completed_at=int(time.time()))
                self.put(record)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")


def is_alive(pid: Any) -> bool:
    if type(pid) is not int:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _size(packed: tuple[bytes, bytes, list[bytes]]) -> int:
    return len(packed[0]) + len(packed[1]) + sum(map(len, packed[2]))


def _item_names(record: Record) -> list[str]:
    return [item["id"] for item in (*record.items, *record.response["output"])]
