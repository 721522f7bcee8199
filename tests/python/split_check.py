"""However a reply is cut, it reads the same; and whatever a model writes, nothing raises and nothing is lost.

Run:  PYTHONPATH=python python tests/python/split_check.py [--splits 1000000] [--seed 0]
An output is a random run of control ids and text: thoughts, calls, broken calls, words, blanks, names that look like
markers. It is read whole, then cut at random places again and again (spec api A-14; prompting 8).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from json_prefix import is_prefix_of_json

from gemmantle import _core
from gemmantle.chat.call_stream import CallStream
from gemmantle.chat.calls import QUOTE
from gemmantle.chat.parser import Call, CallPart, Content, OutputParser, Reasoning
from gemmantle.chat.segments import SPECIAL_IDS

ORDINARY = 1 << 30  # stands for every id of plain text
SPLITS_OF_ONE = 20
WORD = re.compile(r"w\d+x")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "k": {"type": "object"}},
            },
        },
    }
]
_FILLERS = [
    " ", "\n", "\n\n", " \n ", "\t", "é", "🙂", "naïve", "中文", "{", "}", "[", "]", ",", ":", "=", '"', "'", "\\",
    "1", "-", ".5", "null", "call:", "look{", "city:", "thought\n", "thought", "model\n", "<|tool_call>", "<channel|>",
    "<", "<|", '<|"', "|>", "{days:3}",
]  # fmt: skip
_MARKERS = [
    "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
    "<|turn>", "<turn|>", "<|think|>", "<|image>",
]  # fmt: skip

Piece = tuple[int, str]  # an id and its text


@dataclass
class Reading:
    """What the events of one output say, joined."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)  # name, JSON of the arguments, is complete
    taken: str = ""  # text of what was read as a call, or was cut inside of one


class Maker:
    """Random outputs of one generator; words are numbered, so that each can be looked for."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._count = 0

    def output(self) -> list[Piece]:
        """Control ids and runs of text between them; neighbouring runs are joined."""
        rng = self._rng
        pieces: list[Piece] = []
        for _ in range(rng.randint(1, 6)):
            pieces += rng.choice([self._text, self._text, self._thought, self._call, self._call, self._marker])()
        if rng.random() < 0.3:  # broken: something is lost, doubled or moved
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(pieces))
                pieces[at : at + 1] = rng.choice([[], [pieces[at]] * 2, [rng.choice(pieces)]]) or [(ORDINARY, " ")]
        joined: list[Piece] = []
        for id_, text in pieces:
            if joined and id_ == ORDINARY == joined[-1][0]:
                joined[-1] = (ORDINARY, joined[-1][1] + text)
            else:
                joined.append((id_, text))
        return joined

    def call_text(self) -> list[Piece]:
        """A call as a grammar lets it be written, without its markers."""
        return _split_quotes(f"call:look{self._value(0, 'object')}")

    def _word(self) -> str:
        self._count += 1
        return f"w{self._count}x"

    def _words(self) -> str:
        rng = self._rng
        return "".join(self._word() if rng.random() < 0.5 else rng.choice(_FILLERS) for _ in range(rng.randint(1, 8)))

    def _text(self) -> list[Piece]:
        return [(ORDINARY, self._words())]

    def _marker(self) -> list[Piece]:
        spelling = self._rng.choice(_MARKERS)
        return [(SPECIAL_IDS[spelling], spelling)]

    def _thought(self) -> list[Piece]:
        name = self._rng.choice(["thought\n", "thought\n", "thought\n", "thou", "other\n", ""])
        body = [(ORDINARY, name + self._words())]
        return [_marker("<|channel>"), *body, *([_marker("<channel|>")] if self._rng.random() < 0.9 else [])]

    def _call(self) -> list[Piece]:
        rng = self._rng
        body = self.call_text()
        if rng.random() < 0.4:
            body.insert(rng.randrange(len(body) + 1), (ORDINARY, self._words()))
        end = [_marker("<tool_call|>")] if rng.random() < 0.9 else []
        return [_marker("<|tool_call>"), *body, *end]

    def _value(self, depth: int, kind: str = "") -> str:
        rng = self._rng
        kind = kind or rng.choice(["string", "number", "word", *(["object", "array"] if depth < 3 else [])])
        if kind == "string":
            return f"{QUOTE}{self._words().replace(QUOTE, '')}{QUOTE}"
        if kind == "number":
            return rng.choice(["0", "-1.5", "12", "1e+21", "123456789012345678901"])
        if kind == "word":
            return rng.choice(["true", "false", "null"])
        inner = [self._value(depth + 1) for _ in range(rng.randrange(3))]
        if kind == "array":
            return f"[{','.join(inner)}]"
        names = rng.sample(["city", "days", "k", "größe", "a.b"], len(inner))
        return "{" + ",".join(f"{name}:{value}" for name, value in zip(names, inner, strict=True)) + "}"


def _marker(spelling: str) -> Piece:
    return SPECIAL_IDS[spelling], spelling


def _split_quotes(text: str) -> list[Piece]:
    """Text with its delimiters as the ids they are."""
    parts = re.split(f"({re.escape(QUOTE)})", text)
    return [_marker(QUOTE) if part == QUOTE else (ORDINARY, part) for part in parts if part]


def cut(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    """The same, the text in other pieces."""
    out: list[Piece] = []
    share = rng.choice([0.05, 0.3, 0.6, 1.0])
    for id_, text in pieces:
        if id_ != ORDINARY:
            out.append((id_, text))
            continue
        start = 0
        for at in range(1, len(text)):
            if rng.random() < share:
                out.append((ORDINARY, text[start:at]))
                start = at
        out.append((ORDINARY, text[start:]))
    return out


def read(pieces: list[Piece], *, constrained: bool, starts_in_thought: bool, reason: str) -> Reading:
    """Ids to channels to events, joined."""
    channels: Any = _core.Channels(SPECIAL_IDS, starts_in_thought)
    parser = OutputParser(TOOLS, constrained=constrained)
    reading = Reading()
    call_text = ""
    for id_, text in [*pieces, (-1, "")]:
        fed = channels.finish() if id_ < 0 else channels.feed(id_, text.encode())
        for channel, raw in fed:
            piece = raw.decode()
            call_text += piece if channel == "call" else ""
            calls = len(reading.calls)
            note(reading, parser.feed(channel, piece))
            if channel == "call_end":
                reading.taken += call_text if constrained or len(reading.calls) > calls else ""
                call_text = ""
    calls = len(reading.calls)
    note(reading, parser.finish(reason))
    reading.taken += call_text if constrained or reason == "length" or len(reading.calls) > calls else ""
    return reading


def note(reading: Reading, events: list[Any]) -> None:
    for event in events:
        if isinstance(event, Content):
            reading.content += event.text
        elif isinstance(event, Reasoning):
            reading.reasoning += event.text
        elif isinstance(event, Call):
            reading.calls.append((event.name, json.dumps(event.arguments), True))
        elif isinstance(event, CallPart):
            if event.name:
                reading.calls.append((event.name, "", False))
            name, text, _ = reading.calls[-1]
            reading.calls[-1] = (name, text + event.text, event.is_end)


def lost(pieces: list[Piece], reading: Reading, *, constrained: bool) -> list[str]:
    """Words that are nowhere. Of a repaired call the source counts: repairs may drop what is no value."""
    taken = "" if constrained else reading.taken
    told = f"{reading.content} {reading.reasoning} {taken} {' '.join(name + text for name, text, _ in reading.calls)}"
    found = set(WORD.findall(told))
    return [word for id_, text in pieces if id_ == ORDINARY for word in WORD.findall(text) if word not in found]


def check(splits: int, seed: int) -> dict[str, int]:
    """Raises AssertionError naming the seed and the number of the output; gives counts."""
    counts = {"outputs": 0, "splits": 0, "calls": 0, "prefixes": 0}
    while counts["splits"] < splits:
        number = counts["outputs"]
        rng = random.Random(f"{seed}/{number}")
        maker = Maker(rng)
        constrained = rng.random() < 0.4
        is_whole_call = constrained and rng.random() < 0.7
        pieces = [_marker("<|tool_call>"), *maker.call_text()] if is_whole_call else maker.output()
        pieces += [_marker("<tool_call|>")] if is_whole_call else []
        options: dict[str, Any] = {
            "constrained": constrained,
            "starts_in_thought": rng.random() < 0.2 and not is_whole_call,
            "reason": "length" if rng.random() < 0.2 and not is_whole_call else "stop",
        }
        told = f"seed {seed}, output {number}: {pieces} {options}"
        whole = read(pieces, **options)
        if options["reason"] == "stop":
            missing = lost(pieces, whole, constrained=constrained)
            assert not missing, f"{told}: lost {missing} of {whole}"
        if is_whole_call:
            [(name, arguments, is_complete)] = whole.calls
            json.loads(arguments)
            assert (name, is_complete) == ("look", True), told
            counts["prefixes"] += check_prefixes(pieces, arguments, told)
        counts["outputs"] += 1
        counts["calls"] += len(whole.calls)
        for _ in range(min(SPLITS_OF_ONE, splits - counts["splits"])):
            other = read(cut(pieces, rng), **options)
            same = (whole.content, whole.reasoning, whole.calls) == (other.content, other.reasoning, other.calls)
            assert same, f"{told}: {whole} and {other}"
            counts["splits"] += 1
    return counts


def check_prefixes(pieces: list[Piece], arguments: str, told: str) -> int:
    """Letter by letter, delimiters too, the arguments so far are the beginning of JSON, and of the arguments."""
    stream = CallStream()
    so_far = ""
    letters = "".join(text for _, text in pieces[1:-1])
    for letter in letters:
        added = stream.feed(letter)
        so_far += added
        if added:
            assert is_prefix_of_json(so_far), f"{told}: {so_far!r}"
    assert so_far == arguments, f"{told}: {so_far!r}"
    return len(letters)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    counts = check(options.splits, options.seed)
    print(", ".join(f"{count} {name}" for name, count in counts.items()), f"in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
