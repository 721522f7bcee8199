"""Calls written under a grammar, turned into JSON as they come (spec api C-12).

Under a grammar a call is well-formed at every moment, so nothing has to be repaired and nothing has to be waited for:
the name is given once, then pieces of the arguments' JSON. Joined, the pieces are a prefix of valid JSON at every
moment and the whole of it at the end. Keys keep their order, numbers their spelling. What is not well-formed all the
same (no grammar lets it happen) is passed on as it is: nothing raises, and no text is lost.
"""

from __future__ import annotations

import json

from gemmantle.chat.calls import QUOTE

__all__ = ["CallStream"]


class CallStream:
    """One call, fed in any cut."""

    def __init__(self) -> None:
        self.name = ""  # empty until it is complete
        self.head = ""  # what came before the arguments
        self._rest = ""  # not decided yet: the start of a delimiter, or of a key
        self._in_string = False
        self._open: list[str] = []
        self._at_key = False
        self.ended = False  # the closing brace came

    def feed(self, text: str) -> str:
        """What the text adds to the JSON of the arguments."""
        if not self.name:
            self.head += text
            head, brace, text = self.head.partition("{")
            name = head.removeprefix("call:")
            if not brace or not name:
                return ""
            self.name = name
            text = brace + text
        self._rest += text
        out: list[str] = []
        while self._rest and self._step(out):
            pass
        return "".join(out)

    def finish(self) -> str:
        """What was held back and can no longer be decided; empty behind a whole call."""
        rest, self._rest = self._rest, ""
        return json.dumps(rest, ensure_ascii=False)[1:-1] if self._in_string else rest

    def _step(self, out: list[str]) -> bool:
        """Take what is decided; False where more text is needed."""
        if self._in_string:
            return self._string(out)
        text = self._rest
        if self._at_key and text[0] not in "}":
            key, colon, rest = text.partition(":")
            if not colon:
                return False
            out.append(json.dumps(key, ensure_ascii=False) + ":")
            self._rest, self._at_key = rest, False
            return True
        if text.startswith(QUOTE):
            self._rest, self._in_string = text[len(QUOTE) :], True
            out.append('"')
            return True
        if QUOTE.startswith(text):
            return False
        char, self._rest = text[0], text[1:]
        if char in "{[":
            self._open.append(char)
            self._at_key = char == "{"
        elif char in "}]":
            if self._open:
                self._open.pop()
            self._at_key = False
            self.ended = not self._open
        elif char == ",":
            self._at_key = self._open[-1:] == ["{"]
        out.append(char)
        return True

    def _string(self, out: list[str]) -> bool:
        text, quote, rest = self._rest.partition(QUOTE)
        if quote:
            out.append(json.dumps(text, ensure_ascii=False)[1:-1] + '"')
            self._rest, self._in_string = rest, False
            return True
        held = next((n for n in range(len(QUOTE) - 1, 0, -1) if text.endswith(QUOTE[:n])), 0)
        decided = text[: len(text) - held]
        out.append(json.dumps(decided, ensure_ascii=False)[1:-1])
        self._rest = text[len(decided) :]
        return False
