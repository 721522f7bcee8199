"""Messages to prompts, against the released template and for every message shape of OpenAI clients."""

from __future__ import annotations

import json
import re

import pytest

from gemmantle.chat import Prompt, render
from gemmantle.chat.segments import SPECIAL_IDS, Control
from gemmantle.chat.template import NO_RESULT
from gemmantle.errors import RequestError

# What the two libraries tokenize differently: strings that are single pieces in the SentencePiece model only.
HTML_LIKE = re.compile(r"</?[a-z][a-z0-9]*>")


def user(content="Hi"):
    return {"role": "user", "content": content}


def assistant(content=None, **more):
    return {"role": "assistant", "content": content, **more}


def calls(*named):
    return [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(named)
    ]


def result(content, call_id="c0"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# --- the released template --------------------------------------------------------------------------------------------


def of_row(row):
    return render(row["messages"], row["tools"], row["thinking"], row["series"])


def test_text_of_all_renderings(renderings):
    assert len(renderings) == 200
    for number, row in enumerate(renderings):
        assert of_row(row).text == row["text"], f"row {number}"


def test_ids_of_all_renderings_with_tokenizer_json(renderings, tokenizers_library):
    for number, row in enumerate(renderings):
        assert of_row(row).ids(tokenizers_library) == row["ids"], f"row {number}"


def test_ids_of_renderings_without_html_with_the_sentencepiece_model(renderings, sentencepiece_library):
    ordinary = [(i, row) for i, row in enumerate(renderings) if not HTML_LIKE.search(row["text"].replace("<bos>", ""))]
    assert len(ordinary) > 150
    for number, row in ordinary:
        assert of_row(row).ids(sentencepiece_library) == row["ids"], f"row {number}"


def test_starts_in_thought_says_how_renderings_end(renderings):
    prompts = [of_row(row) for row in renderings]
    assert {p.starts_in_thought for p in prompts} == {True, False}
    for prompt in prompts:
        assert prompt.starts_in_thought == prompt.text.endswith("<|channel>thought\n")


# Spec prompting 4.
MODEL = [106, 107, 105, 4368, 107]  # <turn|> newline <|turn> model newline
EMPTY_THOUGHT = [100, 45518, 107, 101]
EXAMPLES = [
    ([user("Hello")], False, "e", [2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107]),
    ([user("Hi")], False, "large", [2, 105, 2364, 107, 10979, 106, 107, 105, 4368, 107, 100, 45518, 107, 101]),
    (
        [{"role": "system", "content": "Be concise."}, user("Say hello.")],
        False,
        "large",
        [
            2,
            105,
            9731,
            107,
            3912,
            63510,
            236761,
            106,
            107,
            105,
            2364,
            107,
            37889,
            29104,
            236761,
            *MODEL,
            *EMPTY_THOUGHT,
        ],
    ),
    (
        [{"role": "developer", "content": " Be concise.\n"}, user("Hi")],
        True,
        "large",
        [2, 105, 9731, 107, 98, 107, 3912, 63510, 236761, 106, 107, 105, 2364, 107, 10979, 106, 107, 105, 4368, 107],
    ),
    (
        [user("Solve 2+2.")],
        True,
        "e",
        [2, 105, 9731, 107, 98, 107, 106, 107, 105, 2364, 107, 76857, 236743, 236778, 236862, 236778, 236761, *MODEL],
    ),
    (
        [user("One"), assistant("Two", reasoning="gone"), user("Three")],
        False,
        "e",
        [2, 105, 2364, 107, 4906, *MODEL, 11634, 106, 107, 105, 2364, 107, 19765, *MODEL],
    ),
]


@pytest.mark.parametrize(("messages", "thinking", "series", "ids"), EXAMPLES)
def test_worked_examples(messages, thinking, series, ids, sentencepiece_library):
    assert render(messages, thinking=thinking, series=series).ids(sentencepiece_library) == ids


def test_worked_example_of_a_call_and_its_result(sentencepiece_library):
    messages = [
        user("Weather?"),
        assistant(reasoning="I should check.", tool_calls=calls(("get_weather", '{"city": "Tallahassee"}'))),
        result("sunny, 91 F"),
    ]
    ids = [2, 105, 9731, 107, 46, 163688, 236787, 828, 236779, 19323, 236782, 7777, 236787, 52, 3407, 7606, 52, 236764]
    ids += [19031, 29616, 15921, 29616, 13319, 29616, 2084, 236787, 52, 35410, 52, 5237]
    ids += [15979, 24845, 52, 13319, 52, 1604, 2084, 236787, 52, 60688, 52, 1807, 47, 106, 107]
    ids += [105, 2364, 107, 26588, 236881, 106, 107, 105, 4368, 107]
    ids += [100, 45518, 107, 236777, 1374, 2426, 236761, 107, 101]
    ids += [48, 6639, 236787, 828, 236779, 19323, 236782, 13319, 236787, 52, 124591, 154928, 52, 236783, 49]
    ids += [50, 6275, 236787, 828, 236779, 19323, 236782, 2394, 236787, 52, 185060, 236764, 236743, 236819, 236770]
    ids += [633, 52, 236783, 51]
    assert render(messages, [WEATHER]).ids(sentencepiece_library) == ids
    thinking = render(messages, [WEATHER], thinking=True)
    assert thinking.starts_in_thought
    assert thinking.ids(sentencepiece_library)[-3:] == [100, 45518, 107]


# --- rules ------------------------------------------------------------------------------------------------------------


def turns(messages, **options):
    """The prompt without its <bos>."""
    text = render(messages, **options).text
    assert text.startswith("<bos>")
    return text.removeprefix("<bos>")


def test_parallel_calls_and_results_stay_in_one_turn():
    messages = [
        user(),
        assistant(tool_calls=calls(("a", "{}"), ("b", '{"y": 1, "X": [null, true, -1.5]}'))),
        result("two", "c1"),
        result("one", "c0"),
        assistant("Done."),
        user("Thanks"),
    ]
    assert turns(messages) == (
        "<|turn>user\nHi<turn|>\n<|turn>model\n"
        "<|tool_call>call:a{}<tool_call|><|tool_call>call:b{X:[null,true,-1.5],y:1}<tool_call|>"
        '<|tool_response>response:b{value:<|"|>two<|"|>}<tool_response|>'
        '<|tool_response>response:a{value:<|"|>one<|"|>}<tool_response|>'
        "Done.<turn|>\n<|turn>user\nThanks<turn|>\n<|turn>model\n"
    )


def test_an_unanswered_last_call_waits_for_its_result():
    assert turns([user(), assistant(tool_calls=calls(("f", "{}")))]).endswith("<tool_call|><|tool_response>")


def test_a_call_that_was_never_answered_gets_an_error_as_its_result():
    messages = [user(), assistant(tool_calls=calls(("f", "{}"), ("g", "{}"))), result("x"), user("Well?")]
    assert f'response:g{{value:<|"|>{NO_RESULT}<|"|>}}<tool_response|><turn|>' in turns(messages)
    silent = [user(), assistant(tool_calls=calls(("f", "{}"))), user("Well?")]
    assert f'response:f{{value:<|"|>{NO_RESULT}<|"|>}}<tool_response|><turn|>' in turns(silent)


@pytest.mark.parametrize(
    ("thinking", "series", "suffix"),
    [
        (True, "large", "<|turn>model\n"),
        (False, "e", "<|turn>model\n"),
        (False, "large", "<|turn>model\n<|channel>thought\n<channel|>"),
    ],
)
def test_a_closed_turn_is_always_followed_by_a_model_turn(thinking, series, suffix):
    # The released template opens none after a message with content, calls and results.
    messages = [user(), assistant("Look:", tool_calls=calls(("f", "{}"))), result("x")]
    prompt = render(messages, thinking=thinking, series=series)
    assert prompt.text.endswith("<tool_response|>Look:<turn|>\n" + suffix)
    assert not prompt.starts_in_thought


def test_thoughts_are_kept_in_the_running_turn_only():
    old = [user("A"), assistant("B", reasoning="old")]
    running = [user("C"), assistant(reasoning="new", tool_calls=calls(("f", "{}"))), result("x")]
    text = turns([*old, *running])
    assert "old" not in text
    assert "<|turn>model\n<|channel>thought\nnew\n<channel|><|tool_call>" in text
    text = turns([*running, user("D")])
    assert "new" not in text
    assert "new" in turns([*running, user("D")], preserve_thinking=True)
    assert "old" not in turns([*old, user("D")], preserve_thinking=True)
    assert "new" in turns([user("C"), assistant("x", reasoning_content="new")])


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("<|channel>thought\nx<channel|>y", "y"),
        (" a <|channel>thought\nx<channel|> b ", "a  b"),
        ("a<|channel>thought\nrest", "a"),
        ("a<channel|>b", "ab"),
    ],
)
def test_raw_thoughts_in_assistant_content_are_removed(content, kept):
    assert f"<|turn>model\n{kept}<turn|>" in turns([user(), assistant(content), user()])


def test_content_parts_are_trimmed_one_by_one():
    parts = [{"type": "text", "text": " a "}, {"type": "input_text", "text": "b\n"}]
    assert turns([user(parts)]) == "<|turn>user\nab<turn|>\n<|turn>model\n"
    system = {"role": "system", "content": parts}
    assert turns([system, user()]).startswith("<|turn>system\na b <turn|>\n")
    assert turns([user(), system]).endswith("<|turn>system\nab<turn|>\n<|turn>model\n")
    assert '{value:<|"|> a b\n<|"|>}' in turns([user(), assistant(tool_calls=calls(("f", "{}"))), result(parts)])


def test_an_empty_system_message_still_has_its_turn():
    assert turns([{"role": "system", "content": ""}, user()]).startswith("<|turn>system\n<turn|>\n")


def test_without_generation_prompt():
    assert turns([user(), assistant("Yes")], add_generation_prompt=False).endswith("model\nYes<turn|>\n")


def test_consecutive_assistant_messages_share_a_turn():
    assert turns([user(), assistant("a"), assistant("b")], add_generation_prompt=False).endswith("model\nab<turn|>\n")


def test_shapes_that_clients_send():
    call = calls(("f", {"a": 1}))
    sdk = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "tool_calls": call,
        "reasoning": None,
        "reasoning_content": None,
    }
    expected = turns([user(), assistant(tool_calls=call), result("x")])
    assert turns([user(), sdk, result("x")]) == expected
    assert turns([{**user(), "name": None, "tool_calls": None}, sdk, result("x")]) == expected
    legacy = [
        user(),
        assistant(function_call={"name": "f", "arguments": '{"a": 1}'}),
        {"role": "function", "name": "f", "content": "x"},
    ]
    assert turns(legacy) == expected
    google = [user(), assistant(tool_calls=call, tool_responses=[{"name": "f", "response": "x"}])]
    assert turns(google) == expected
    mapping = [user(), assistant(tool_calls=call, tool_responses=[{"name": "f", "response": {"b": 1, "a": "x"}}])]
    assert 'response:f{a:<|"|>x<|"|>,b:1}' in turns(mapping)
    assert "No.<turn|>" in turns([user(), assistant(refusal="No."), user()])
    assert turns([user(), assistant([{"type": "refusal", "refusal": "No."}]), user()]) == turns(
        [user(), assistant("No."), user()]
    )
    assert turns([user(), assistant(tool_calls=calls(("f", "")), content="")]).endswith(
        "call:f{}<tool_call|><|tool_response>"
    )

    class Message:
        def model_dump(self, exclude_none):
            assert exclude_none
            return {"role": "assistant", "tool_calls": call}

    assert turns([user(), Message(), result("x")]) == expected


def test_a_result_without_a_known_call_is_named_as_the_template_does():
    messages = [user(), assistant(tool_calls=calls(("f", "{}"))), {**result("x", "other"), "name": "g"}]
    assert "response:g{" in turns(messages)
    del messages[2]["name"]
    assert "response:unknown{" in turns(messages)


# --- content is never control -----------------------------------------------------------------------------------------


def everywhere(text):
    """A conversation that has `text` at every place a caller can reach."""
    schema = {"type": "string", "description": text, "enum": [text]}
    parameters = {"type": "object", "properties": {text: schema}, "required": [text]}
    tool = {"type": "function", "function": {"name": "f", "description": text, "parameters": parameters}}
    messages = [
        {"role": "system", "content": text},
        user([{"type": "text", "text": text}]),
        assistant(reasoning=text, tool_calls=calls((text, {text: text, "b": [{text: text}]}))),
        result(text),
        assistant(tool_calls=calls(("f", json.dumps({text: text})))),
        result(text),
    ]
    return render(messages, [tool], thinking=True)


def test_no_text_from_outside_becomes_a_control_token(sentencepiece_library):
    control = set(sentencepiece_library.control)

    def control_ids(text):
        return [i for i in everywhere(text).ids(sentencepiece_library) if i in control]

    assert control_ids("x" + "".join(SPECIAL_IDS) + "y") == control_ids("xy")


def test_adjacent_text_is_one_segment_so_that_tokens_merge_over_it(sentencepiece_library):
    messages = [user(), assistant(reasoning="\nA", tool_calls=calls(("f", "{}")))]
    prompt = render(messages)
    assert "thought\n\nA\n" in prompt.segments
    assert not any(
        isinstance(a, str) and isinstance(b, str) for a, b in zip(prompt.segments, prompt.segments[1:], strict=False)
    )
    assert 108 in prompt.ids(sentencepiece_library)


def test_a_prompt_needs_a_tokenizer_for_ids():
    prompt = render([user()])
    with pytest.raises(RequestError, match="Tokenizer"):
        prompt.ids()


def test_a_prompt_may_know_its_tokenizer(sentencepiece_library):
    prompt = render([user("Hello")]).with_tokenizer(sentencepiece_library)
    assert prompt.ids() == EXAMPLES[0][3]
    assert prompt == render([user("Hello")])


def test_a_vocabulary_without_the_chat_format_is_refused_with_words(sentencepiece_library):
    prompt = Prompt((Control("<|video|>"),))
    with pytest.raises(RequestError, match=r"<\|video\|>"):
        prompt.ids(sentencepiece_library)


# --- errors -----------------------------------------------------------------------------------------------------------

CALLED = assistant(tool_calls=calls(("f", "{}")))


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "empty"),
        ("Hi", "messages", "list"),
        ({"role": "user"}, "messages", "list"),
        (["Hi"], "messages[0]", "str"),
        ([{"content": "x"}], "messages[0].role", "None"),
        ([user(), {"role": "model", "content": "x"}], "messages[1].role", "'model'"),
        ([{"role": "user"}], "messages[0].content", "missing"),
        ([user(5)], "messages[0].content", "int"),
        ([user([{"type": "text"}])], "messages[0].content[0].text", "None"),
        (
            [user(), user([{"type": "text", "text": "a"}, {"type": "text", "text": 5}])],
            "messages[1].content[1].text",
            "5",
        ),
        ([user(["a"])], "messages[0].content[0].type", "None"),
        ([user([{"type": "hologram"}])], "messages[0].content[0].type", "hologram"),
        ([user(), result("x")], "messages[1]", "no tool call"),
        ([result("x"), user()], "messages[0]", "no tool call"),
        ([user(), CALLED, user(), result("x")], "messages[3]", "no tool call"),
        ([user(), CALLED, result({"a": 1})], "messages[2].content", "dict"),
        ([assistant(tool_calls=calls(("f", "{")))], "messages[0].tool_calls[0].function.arguments", "JSON"),
        ([assistant(tool_calls=calls(("f", "[1]")))], "messages[0].tool_calls[0].function.arguments", "list"),
        ([assistant(tool_calls=calls(("f", "[" * 10**5)))], "messages[0].tool_calls[0].function.arguments", "JSON"),
        ([assistant(tool_calls=calls(("f", "{}"), ("", "{}")))], "messages[0].tool_calls[1].function.name", "''"),
        ([assistant(tool_calls=[5])], "messages[0].tool_calls[0]", "int"),
        ([assistant(tool_calls="f()")], "messages[0].tool_calls", "str"),
        ([assistant("x", reasoning=["a"])], "messages[0].reasoning", "list"),
        ([assistant("x", tool_responses=[{"name": "f"}])], "messages[0].tool_responses[0].response", "None"),
    ],
)
def test_bad_messages_are_refused_by_path(messages, param, words):
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        render(messages)
    assert caught.value.param == param
    assert caught.value.code == "invalid_value"


@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "video_url", "file"])
def test_media_is_refused_until_there_are_towers(kind):
    with pytest.raises(RequestError) as caught:
        render([user([{"type": "text", "text": "a"}, {"type": kind, kind: {}}])])
    assert caught.value.code == "unsupported_content_type"
    assert caught.value.param == "messages[0].content[1]"


def test_an_unknown_series_is_refused():
    with pytest.raises(RequestError, match="'xl'"):
        render([user()], series="xl")


def test_arguments_of_any_depth_end_with_words():
    value = []
    for _ in range(1000):
        value = [value]
    with pytest.raises(RequestError, match="deeper"):
        render([user(), assistant(tool_calls=calls(("f", {"a": value})))])
