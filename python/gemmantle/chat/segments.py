"""A prompt as segments: control strings by name, ordinary text between them.

Text from outside (messages, tool results, schemas) only ever enters as ordinary text, so a caller who writes
`<turn|>` gets the characters and never the control token (spec prompting 1.6).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SPECIAL_IDS", "Control", "Segment", "Segments"]

# The 24 control strings of Gemma 4 with their ids in the published vocabulary of 262,144 (spec prompting 2).
SPECIAL_IDS: dict[str, int] = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<mask>": 4,
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 255_999,
    "<|audio>": 256_000,
    "<|image|>": 258_880,
    "<|audio|>": 258_881,
    "<image|>": 258_882,
    "<audio|>": 258_883,
    "<|video|>": 258_884,
}


@dataclass(frozen=True, slots=True)
class Control:
    """One control token, named by its spelling."""

    spelling: str


Segment = str | Control


class Segments:
    """Collects segments. Adjacent ordinary text is joined, so that tokens may merge over the border (prompting 1.6)."""

    def __init__(self) -> None:
        self._done: list[Segment] = []
        self._text: list[str] = []

    def text(self, *pieces: str) -> None:
        """Ordinary text."""
        self._text.extend(pieces)

    def control(self, spelling: str) -> None:
        """One control token. The spelling comes from our own code, never from outside."""
        self._close_text()
        self._done.append(Control(spelling))

    def quoted(self, text: str) -> None:
        """A string in the call syntax: raw text between two delimiters."""
        self.control('<|"|>')
        self.text(text)
        self.control('<|"|>')

    def ends_with(self, *tail: Segment) -> bool:
        """Whether the last segments are exactly these."""
        self._close_text()
        return len(self._done) >= len(tail) and tuple(self._done[-len(tail) :]) == tail

    def take(self) -> tuple[Segment, ...]:
        """All segments so far: no empty text, no two texts side by side."""
        self._close_text()
        return tuple(self._done)

    def _close_text(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text:
            if self._done and isinstance(self._done[-1], str):
                self._done[-1] += text
            else:
                self._done.append(text)
