"""However a reply is cut, it reads the same (spec api A-14): 20,000 cuts here, a million by `split_check.py`."""

from __future__ import annotations

import json

import pytest
import split_check

from gemmantle.chat import call_stream
from gemmantle.chat.calls import QUOTE
from gemmantle.chat.parser import CallPart, Content, OutputParser


def test_a14_replies_read_the_same_in_every_cut_and_nothing_is_lost():
    counts = split_check.check(20_000, seed=14)
    print(counts)
    assert counts["calls"] > 500
    assert counts["prefixes"] > 5000


def test_the_check_can_fail(monkeypatch):
    """A reader that forgets to hold back the start of a delimiter is found out."""

    def string(self, out):
        text, quote, rest = self._rest.partition(QUOTE)
        out.append(json.dumps(text, ensure_ascii=False)[1:-1] + '"' * bool(quote))
        self._rest, self._in_string = rest, not quote
        return bool(quote)

    monkeypatch.setattr(call_stream.CallStream, "_string", string)
    with pytest.raises(AssertionError, match="seed 14, output"):
        split_check.check(1000, seed=14)


def events_of(*pieces):
    parser = OutputParser([], constrained=True)
    events = [event for channel, text in pieces for event in parser.feed(channel, text)]
    return events + parser.finish()


def test_what_no_grammar_would_write_is_passed_on():
    assert events_of(("call", "no call"), ("call_end", "")) == [Content("no call")]
    end = CallPart(is_end=True)
    assert events_of(("call", "call:f{a:<b>}]},"), ("call_end", "")) == [
        CallPart(name="f"), CallPart(text='{"a":<b>}]},'), end
    ]  # fmt: skip
    assert events_of(("call", f"call:f{{a:{QUOTE}x<|")) == [
        CallPart(name="f"),
        CallPart(text='{"a":"x'),
        CallPart(text="<|"),
        end,
    ]
