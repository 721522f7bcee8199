"""What a model wrote: trimming, tool calls and their repair, whole and in a stream."""

from __future__ import annotations

import json
import random
import time

import pytest

from gemmantle.chat.calls import read_call
from gemmantle.chat.parser import Call, Content, OutputParser, Parsed, Reasoning, parse
from gemmantle.chat.template import render
from gemmantle.chat.tools import read_tools

QUOTE = '<|"|>'


def quoted(text):
    """§ stands for the string delimiter in these tests."""
    return text.replace("§", QUOTE)


# --- pieces to events -------------------------------------------------------------------------------------------------


def run(pieces, reason="stop", tools=None):
    """(content, reasoning, calls) of pieces, each in one go."""
    parser = OutputParser(tools)
    events = [e for channel, text in pieces for e in parser.feed(channel, quoted(text))]
    events += parser.finish(reason)
    return joined(events)


def joined(events):
    return (
        "".join(e.text for e in events if isinstance(e, Content)),
        "".join(e.text for e in events if isinstance(e, Reasoning)),
        [(e.name, e.arguments) for e in events if isinstance(e, Call)],
    )


CALL = [("call", "call:f{a:1}"), ("call_end", "")]
F = ("f", {"a": 1})

TRIMMING = [
    ([("content", "Hello"), ("content", " \n")], ("Hello \n", "", [])),
    ([("content", "\n\nHello")], ("Hello", "", [])),
    ([("thought", "hm\n"), ("content", "\n"), ("content", "\nyes")], ("yes", "hm", [])),
    ([("thought", "\n\nhm\n\n")], ("", "hm\n", [])),
    ([("thought", "hm \n"), ("content", "x")], ("x", "hm ", [])),
    ([("thought", "hm\n")], ("", "hm", [])),
    ([("thought", "\n"), ("content", "x")], ("x", "", [])),
    ([("thought", "a\n"), ("content", "x "), ("thought", "b\n"), ("content", "\ny")], ("x y", "a\nb", [])),
    ([("content", "So: \n"), *CALL], ("So:", "", [F])),
    ([("content", "So: "), *CALL, ("content", "then")], ("So: then", "", [F])),
    ([("content", "So: "), *CALL, *CALL], ("So:", "", [F, F])),
    ([("thought", "hm\n"), *CALL], ("", "hm", [F])),
    ([("content", "\n"), *CALL], ("", "", [F])),
    ([("content", "A "), ("call", "no call at all"), ("call_end", "")], ("A no call at all", "", [])),
]


@pytest.mark.parametrize(("pieces", "wanted"), TRIMMING)
def test_trimming_is_the_same_whole_and_letter_by_letter(pieces, wanted):
    assert run(pieces) == wanted
    letters = [(c, letter) for c, text in pieces for letter in (text or [""])]
    assert run(letters) == wanted


def test_text_streams_at_once_but_trailing_blanks_wait():
    parser = OutputParser()
    assert parser.feed("content", "Hello ") == [Content("Hello")]
    assert parser.feed("content", "\n") == []
    assert parser.feed("content", "you") == [Content(" \nyou")]
    assert parser.feed("thought", "hm\n") == [Reasoning("hm")]
    assert parser.feed("call", "call:f{") == []
    assert parser.feed("call", "}") == []
    assert parser.feed("call_end", "") == [Call("f", {})]
    assert parser.finish() == []


@pytest.mark.parametrize(("reason", "calls"), [("stop", [F]), ("length", []), ("cancelled", [])])
def test_an_open_call_is_repaired_at_a_stop_and_dropped_at_a_cut(reason, calls):
    assert run([("content", "A "), ("call", "call:f{a:1")], reason) == ("A", "", calls)


def test_what_is_no_call_comes_back_as_content():
    assert run([("call", "!?")]) == ("!?", "", [])
    assert run([("call_end", "")]) == ("", "", [])


def test_an_unknown_channel_is_a_bug():
    with pytest.raises(ValueError, match="music"):
        OutputParser().feed("music", "x")


# --- calls ------------------------------------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "ratio": {"type": "number"},
                    "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "either": {"type": ["string", "integer"]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "place": {"$ref": "#/$defs/Place"},
                },
                "$defs": {"Place": {"type": "object", "properties": {"zip": {"type": "string"}}}},
            },
        },
    },
    {"type": "function", "function": {"name": "files.read"}},
]
DECLARED = read_tools(TOOLS)

# (body, arguments) without a schema.
PLAIN = [
    # The grammar.
    ("{}", {}),
    ("{ }", {}),
    ("{a:§x§}", {"a": "x"}),
    ("{a:§§}", {"a": ""}),
    ("{a:§x§,b:-1.5,c:12,d:true,e:false,f:null}", {"a": "x", "b": -1.5, "c": 12, "d": True, "e": False, "f": None}),
    ("{ a : §x§ ,\n b : 1 , }", {"a": "x", "b": 1}),
    (
        "{a:[],b:{},c:[1,§x§,[2],{k:3}],d:{k:{l:§m§}}}",
        {"a": [], "b": {}, "c": [1, "x", [2], {"k": 3}], "d": {"k": {"l": "m"}}},
    ),
    ('{a:§line1\nline2 "q" {x} [y] , b:§}', {"a": 'line1\nline2 "q" {x} [y] , b:'}),
    ("{a:1e3,b:1E-2,c:0.5}", {"a": 1000.0, "b": 0.01, "c": 0.5}),
    ("{a:123456789012345678901234567890}", {"a": 123456789012345678901234567890}),
    ("{§a b§:1}", {"a b": 1}),
    ("{a-b_c:1,größe:2,a.b:3}", {"a-b_c": 1, "größe": 2, "a.b": 3}),
    # 1: a JSON object.
    ('{"a": "x\\n", "b": [1, 2.0, {"c": null}]}', {"a": "x\n", "b": [1, 2.0, {"c": None}]}),
    ('{"a": 1, "a": 2}', {"a": 2}),
    # 2: keys in quotes.
    ("{\"a\":§x§,'b':1,§c§:2}", {"a": "x", "b": 1, "c": 2}),
    ('{"a:1}', {"a": 1}),
    # 3: plain quotes.
    ('{a:"x",b:[\'y\',"z"],c:{d:"w"}}', {"a": "x", "b": ["y", "z"], "c": {"d": "w"}}),
    ('{a:"x\\"y\\n"}', {"a": 'x"y\n'}),
    ("{a:'it\\'s'}", {"a": "it's"}),
    ('{a:"he said "hi", and left",b:1}', {"a": 'he said "hi", and left', "b": 1}),
    ('{a:"C:\\dir"}', {"a": "C:\\dir"}),
    ('{a:"no end,b:1}', {"a": '"no end', "b": 1}),
    # 4: a delimiter inside a string.
    ("{a:§print(§hi§)§}", {"a": 'print(<|"|>hi<|"|>)'}),
    ("{a:§x § y § z§,b:1}", {"a": 'x <|"|> y <|"|> z', "b": 1}),
    ("{a:§say §hi§, then: go§}", {"a": 'say <|"|>hi<|"|>, then: go'}),
    ("{a:[§x§,§y§],b:§z§}", {"a": ["x", "y"], "b": "z"}),
    # 5: a lost closing delimiter.
    ("{a:§x,b:§y§}", {"a": "x", "b": "y"}),
    ("{a:§x}", {"a": "x"}),
    ("{a:{b:§x}}", {"a": {"b": "x"}}),
    ("{a:§x", {"a": "x"}),
    ("{a:[§x,§y§]}", {"a": ["x", "y"]}),
    # 6: a lost opening delimiter.
    ("{a:x§,b:1}", {"a": "x", "b": 1}),
    ("{a:Hello, world§,b:§y§}", {"a": "Hello, world", "b": "y"}),
    # 7: bare text.
    ("{a:some words,b:1}", {"a": "some words", "b": 1}),
    ("{a:Hello, world,b:1}", {"a": "Hello, world", "b": 1}),
    ("{a:f(x) { y; },b:1}", {"a": "f(x) { y; }", "b": 1}),
    ("{a:2024-01-01}", {"a": "2024-01-01"}),
    ("{a:007}", {"a": "007"}),
    ("{a:[red,green]}", {"a": ["red", "green"]}),
    ("{a:,b:1}", {"a": None, "b": 1}),
    ("{a:1e999}", {"a": "1e999"}),
    # 8: key=value.
    ("{a=1,b = §x§}", {"a": 1, "b": "x"}),
    # 9: brackets that are missing or too many.
    ("{a:{b:[1,2", {"a": {"b": [1, 2]}}),
    ("{a:1", {"a": 1}),
    ("{", {}),
    ("{a:[1,2}", {"a": [1, 2]}),
    ("{a:[{b:1]}", {"a": [{"b": 1}]}),
    ("{a:1]}", {"a": 1}),
    ("{a:1]],b:2}", {"a": 1, "b": 2}),
    ("{a:[1},2]}", {"a": [1, 2]}),
    ("{a:1},b:2}", {"a": 1, "b": 2}),
    ("{a:1}}}", {"a": 1}),
    ("{]}", {}),
    ("{,,a:1,,b:2,}", {"a": 1, "b": 2}),
    ("{:,=,a:1}", {"a": 1}),
    ("{a}", {}),
    ("{a,b:1}", {"b": 1}),
    ("{a{b:1}}", {"a": {"b": 1}}),
    # 10: words of other languages.
    ("{a:None,b:nil,c:NULL,d:True,e:False}", {"a": None, "b": None, "c": None, "d": True, "e": False}),
    # 11: the last one wins.
    ("{a:1,b:2,a:3}", {"a": 3, "b": 2}),
]

# (body, arguments) of get_weather.
WITH_SCHEMA = [
    # 4 and 5 look at declared names.
    ("{city:§say §hi§, then: 3§}", {"city": 'say <|"|>hi', "then": 3}),
    ("{city:§say §hi§, then: go§}", {"city": 'say <|"|>hi<|"|>, then: go'}),
    ("{city:§say §hi§,days:3}", {"city": 'say <|"|>hi', "days": 3}),
    ("{city:§Paris,days:3}", {"city": "Paris", "days": 3}),
    ("{city:§Paris, or so: yes,days:3}", {"city": "Paris, or so: yes", "days": 3}),
    ("{city:§Paris,unit:§C§}", {"city": "Paris", "unit": "C"}),
    ("{city:§Paris, days: many§}", {"city": "Paris, days: many"}),
    # 6 and 7.
    ("{city:Paris§,unit:C}", {"city": "Paris", "unit": "C"}),
    ("{city:Paris, France,days:3}", {"city": "Paris, France", "days": 3}),
    ("{city:75001}", {"city": "75001"}),
    ("{city:1.50}", {"city": "1.50"}),
    ("{city:true,unit:null}", {"city": "true", "unit": None}),
    ("{city:}", {"city": ""}),
    ("{place:{zip:75001},tags:[1,a]}", {"place": {"zip": "75001"}, "tags": ["1", "a"]}),
    # Types.
    ("{days:3.0,ratio:3.0}", {"days": 3, "ratio": 3.0}),
    ("{days:3.5}", {"days": 3.5}),
    ("{days:1e2}", {"days": 100}),
    ("{either:5,other:5}", {"either": 5, "other": 5}),
    ('{"city": 1.50, "days": 3.0, "place": {"zip": 5}}', {"city": "1.50", "days": 3, "place": {"zip": "5"}}),
]


def same(found, wanted):
    """Equality that tells 3 from 3.0 and True from 1."""
    return json.dumps(found) == json.dumps(wanted)


@pytest.mark.parametrize(("body", "arguments"), PLAIN)
def test_arguments(body, arguments):
    call = read_call(quoted("call:f" + body))
    assert call is not None
    assert call.name == "f"
    assert same(call.arguments, arguments), call.arguments


@pytest.mark.parametrize(("body", "arguments"), WITH_SCHEMA)
def test_arguments_of_a_declared_tool(body, arguments):
    call = read_call(quoted("call:get_weather" + body), DECLARED)
    assert call is not None
    assert same(call.arguments, arguments), call.arguments


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("call:get_weather{}", "get_weather"),
        (" call: get_weather {}\n", "get_weather"),
        ("get_weather{}", "get_weather"),
        ("call:get_weather", "get_weather"),
        ("call:default_api:get_weather{}", "get_weather"),
        ("call:functions.get_weather{}", "get_weather"),
        ("call:files.read{}", "files.read"),
        ("call:ns:files.read{}", "files.read"),
        ("call:read{}", "read"),
        ("call:other.tool{}", "other.tool"),
        ("call:{}", None),
        ("call:", None),
        ("", None),
        ("get_weather", None),
        ("call:get weather{}", None),
    ],
)
def test_names(text, name):
    call = read_call(text, DECLARED)
    assert (call.name if call else None) == name


def test_everything_we_render_is_read_back():
    seed = 8
    rng = random.Random(seed)
    words = ["a", "B c", 'say "hi"', "x,y:z", "{", "}]", "line\nline", "naïve 你好", " ", "null", "5"]

    def value(depth):
        kinds = [
            lambda: rng.choice(words),
            lambda: rng.randrange(-100, 10**12),
            lambda: rng.uniform(-1, 1) * 10 ** rng.randrange(-9, 20),
            lambda: rng.choice([True, False, None]),
            lambda: [value(depth + 1) for _ in range(rng.randrange(3))],
            lambda: {f"k{i}": value(depth + 1) for i in range(rng.randrange(3))},
        ]
        return rng.choice(kinds[: 4 if depth > 3 else 6])()

    for trial in range(500):
        arguments = {f"p{i}": value(0) for i in range(rng.randrange(5))}
        called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
        text = render(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [called]}]
        ).text
        body = text.split("<|tool_call>")[1].split("<tool_call|>")[0]
        call = read_call(body)
        assert call is not None
        assert json.dumps(call.arguments, sort_keys=True) == json.dumps(arguments, sort_keys=True), (
            f"seed {seed}/{trial}"
        )


def test_reading_never_raises_and_always_ends():
    seed = 99
    rng = random.Random(seed)
    parts = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "=",
        QUOTE,
        '"',
        "'",
        "\\",
        "a",
        "city",
        "days",
        " ",
        "\n",
        "1",
        "-",
        ".5",
        "null",
        "é",
    ]
    for trial in range(3000):
        text = "call:get_weather{" + "".join(rng.choices(parts, k=rng.randrange(40)))
        for tools in ((), DECLARED):
            call = read_call(text, tools)
            assert call is None or json.dumps(call.arguments) is not None, f"seed {seed}/{trial}"


@pytest.mark.parametrize(
    "unit",
    [
        "a:§x,",
        "a:§x§,",
        'a:"x,',
        "a:'x,",
        '"',
        "§",
        "§,",
        "a:x, ",
        "a:[",
        "a:{",
        "]",
        "a:[}",
        " ",
        "a:§ ",
        "a",
        ",",
        ":",
        "city:§x,",
        "city:x §",
        "a:§x§ ,b",
        '"a":1,',
        "a:\\",
        "city:§§,days:",
        "\\'",
        "[1},",
        "a:§[§,",
    ],
)
def test_reading_takes_linear_time(unit):
    # 500 kB of each take up to 2 s; what is quadratic takes an hour.
    text = quoted("call:get_weather{" + unit * (500_000 // len(quoted(unit))))
    start = time.perf_counter()
    read_call(text, DECLARED)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("text", ["{a:" * 1000, "{a:[" * 1000, '{"a":' * 400 + "1" + "}" * 400, "{" + "[" * 10**5])
def test_nesting_beyond_any_schema_is_no_call(text):
    call = read_call("call:f" + text)
    assert call is None or call.arguments == {}


# --- whole text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Hello", Parsed("Hello")),
        ("Hello<turn|>", Parsed("Hello")),
        ("Hello<turn|>\n<|turn>user\nmore", Parsed("Hello")),
        ("<|channel>thought\nI should check.\n<channel|>Yes.<eos>", Parsed("Yes.", "I should check.")),
        ("<|channel>thought\n<channel|>Yes.", Parsed("Yes.")),
        ("<|channel>thought\nhm", Parsed("", "hm")),
        ("<|turn>model\n<|channel>thought\nhm\n<channel|>\nYes", Parsed("Yes", "hm")),
        (
            "<|channel>thought\nI should check.\n<channel|><|tool_call>call:get_weather{city:§Tallahassee§}<tool_call|>"
            "<|tool_response>",
            Parsed("", "I should check.", [Call("get_weather", {"city": "Tallahassee"})]),
        ),
        (
            "Both: <|tool_call>call:a{x:[1,2]}<tool_call|><|tool_call>call:b{y:§z§}<tool_call|><|tool_response>",
            Parsed("Both:", "", [Call("a", {"x": [1, 2]}), Call("b", {"y": "z"})]),
        ),
        ("<|tool_call>call:a{x:§<b>}<tool_call|>", Parsed("", "", [Call("a", {"x": "<b>"})])),
        ("<|tool_call>call:a{x:1<turn|>", Parsed("", "", [Call("a", {"x": 1})])),
        ("<|tool_call>?!<turn|>", Parsed("?!")),
        ("a < b <|not a marker|> 你好", Parsed("a < b <|not a marker|> 你好")),
    ],
)
def test_whole_text(text, parsed):
    assert parse(quoted(text)) == parsed


def test_whole_text_knows_where_it_starts_and_why_it_ended():
    assert parse("hm\n<channel|>Yes", starts_in_thought=True) == Parsed("Yes", "hm")
    assert parse("A<|tool_call>call:a{x:1", finish_reason="length") == Parsed("A")
    assert parse("<|tool_call>call:x.get_weather{days:3.0}", TOOLS).tool_calls == [Call("get_weather", {"days": 3})]
