"""Where stored chats are kept: in memory within bounds, or in the file that `state_path` names (spec api 5.1, 6.4).

A chat is kept with the messages that led to it. Both stores keep serialised text, oldest first, and may be used from
any thread; several processes may share a file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from gemmantle.api.store import MAX_BYTES, MAX_RESPONSES

__all__ = ["ChatStore", "MemoryChats", "SqliteChats", "StoredChat"]


@dataclass
class StoredChat:
    """A reply as it was given, its `metadata` included, and the messages of its request."""

    completion: dict[str, Any]
    messages: list[dict[str, Any]]

    def packed(self) -> bytes:
        return json.dumps([self.completion, self.messages], separators=(",", ":")).encode("ascii")

    @staticmethod
    def unpacked(data: bytes) -> StoredChat:
        return StoredChat(*json.loads(data))


class ChatStore(Protocol):
    """`put` of a name that is there changes it in its place."""

    def put(self, chat: StoredChat) -> None: ...

    def get(self, name: str) -> StoredChat | None: ...

    def delete(self, name: str) -> bool: ...

    def __iter__(self) -> Iterator[StoredChat]:
        """All of them, the oldest first."""


class MemoryChats:
    """The life of the process; the oldest make room."""

    def __init__(self, max_chats: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._chats: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._max_chats = max_chats
        self._max_bytes = max_bytes

    def put(self, chat: StoredChat) -> None:
        name, packed = chat.completion["id"], chat.packed()
        with self._lock:
            self._bytes += len(packed) - len(self._chats.get(name, b""))
            self._chats[name] = packed
            while len(self._chats) > self._max_chats or (self._bytes > self._max_bytes and len(self._chats) > 1):
                self._bytes -= len(self._chats.popitem(last=False)[1])

    def get(self, name: str) -> StoredChat | None:
        with self._lock:
            packed = self._chats.get(name)
        return None if packed is None else StoredChat.unpacked(packed)

    def delete(self, name: str) -> bool:
        with self._lock:
            packed = self._chats.pop(name, None)
            self._bytes -= len(packed or b"")
        return packed is not None

    def __iter__(self) -> Iterator[StoredChat]:
        with self._lock:
            found = list(self._chats.values())
        return map(StoredChat.unpacked, found)


class SqliteChats:
    """A table beside the stored responses, over a connection of its own."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS chats (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,"
            " body BLOB NOT NULL)"
        )

    def put(self, chat: StoredChat) -> None:
        name, packed = chat.completion["id"], chat.packed()
        self._run(
            "INSERT INTO chats (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (name, packed),
        )

    def get(self, name: str) -> StoredChat | None:
        with self._lock:
            row = self._db.execute("SELECT body FROM chats WHERE id = ?", (name,)).fetchone()
        return None if row is None else StoredChat.unpacked(row[0])

    def delete(self, name: str) -> bool:
        return self._run("DELETE FROM chats WHERE id = ?", (name,)) > 0

    def __iter__(self) -> Iterator[StoredChat]:
        with self._lock:
            rows = self._db.execute("SELECT body FROM chats ORDER BY number").fetchall()
        return (StoredChat.unpacked(row[0]) for row in rows)

    def _run(self, statement: str, values: tuple[Any, ...]) -> int:
        with self._lock:
            return self._db.execute(statement, values).rowcount
