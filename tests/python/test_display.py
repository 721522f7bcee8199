"""`gemmantle.show` in a terminal and in a notebook, and loads in cells that are run again."""

from __future__ import annotations

import re
import sys
import types

import pytest
from fake_engine import HELLO, HOLD, FakeEngine, content
from test_client import client_for

import gemmantle
from gemmantle import cells, display
from gemmantle.display import show

USER = [{"role": "user", "content": "Hi"}]
CALL = [("call", "call:f{a:1}"), ("call_end", "")]
THOUGHT = [("thought", "Let me "), ("thought", "see.")]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]


def chat(engine, **fields):
    return client_for(engine).chat.completions.create(model="fake", messages=USER, **{"stream": True, **fields})


def test_a_terminal_gets_the_text_and_the_caller_the_answer(capsys):
    answer = show(chat(FakeEngine(HELLO), stream_options={"include_usage": True}))
    assert capsys.readouterr().out == "Hello, world!\n"
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


def test_thoughts_are_folded_and_calls_are_shown(capsys):
    script = [*THOUGHT, *content("Yes."), *CALL]
    fields = {"tools": TOOLS, "reasoning_effort": "high"}
    answer = show(chat(FakeEngine(script), **fields))
    assert capsys.readouterr().out == '(thinking)\nYes.\n-> f {"a":1}\n'
    assert answer.choices[0].message.reasoning == "Let me see."
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'
    show(chat(FakeEngine(script), **fields), thoughts=True)
    assert capsys.readouterr().out == 'Let me see.\nYes.\n-> f {"a":1}\n'


def test_an_answer_that_the_limit_cut_is_given_too(capsys):
    answer = show(chat(FakeEngine(HELLO), max_tokens=1))
    assert answer.choices[0].finish_reason == "length"
    with client_for(FakeEngine(HELLO)).chat.completions.stream(model="fake", messages=USER, max_tokens=1) as stream:
        assert show(stream).choices[0].finish_reason == "length"


def test_the_parts_of_a_completion_are_joined(capsys):
    client = client_for(FakeEngine(HELLO))
    fields = {"model": "fake", "prompt": "a", "logprobs": 1, "seed": 1}
    joined = show(client.completions.create(**fields, stream=True))
    whole = client.completions.create(**fields)
    assert joined.choices[0].logprobs.tokens == whole.choices[0].logprobs.tokens
    assert joined.choices[0].text == whole.choices[0].text
    assert joined.choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_stream_without_an_end_gives_nothing(capsys):
    assert show(iter(())) is None


def test_more_choices_follow_the_first(capsys):
    answer = show(chat(FakeEngine(lambda choice: content(f"a{choice}")), n=3))
    assert capsys.readouterr().out == "a0\n\n[1]\na1\n\n[2]\na2\n"
    assert [choice.message.content for choice in answer.choices] == ["a0", "a1", "a2"]


def test_every_door_of_the_client_can_be_shown(capsys):
    client = client_for(FakeEngine(HELLO))
    whole = client.chat.completions.create(model="fake", messages=USER)
    text = client.completions.create(model="fake", prompt="a")
    response = client.responses.create(model="fake", input="Hi")
    for given, found in [
        (client.chat.completions.stream(model="fake", messages=USER), lambda a: a.choices[0].message.content),
        (client.completions.create(model="fake", prompt="a", stream=True), lambda a: a.choices[0].text),
        (client.responses.create(model="fake", input="Hi", stream=True), lambda a: a.output_text),
        (client.responses.stream(model="fake", input="Hi"), lambda a: a.output_text),
        (whole, lambda a: a.choices[0].message.content),
        (text, lambda a: a.choices[0].text),
        (response, lambda a: a.output_text),
    ]:
        assert found(show(given)) == "Hello, world!"
        assert capsys.readouterr().out == "Hello, world!\n"


def test_responses_show_thoughts_and_calls(capsys):
    client = client_for(FakeEngine([*THOUGHT, *content("Yes."), *CALL]))
    tool = {"type": "function", "name": "f", "parameters": TOOLS[0]["function"]["parameters"], "strict": False}
    for stream in (False, True):
        fields = {"model": "fake", "input": "Hi", "tools": [tool], "reasoning": {"effort": "high"}}
        show(client.responses.create(**fields, stream=stream))
        assert capsys.readouterr().out == '(thinking)\nYes.\n-> f {"a":1}\n'


def test_what_is_no_answer_is_refused_in_words():
    with pytest.raises(TypeError, match="given int"):
        show(3)
    with pytest.raises(TypeError, match="stream of int"):
        show([3])

    class Async:
        def __aiter__(self): ...

    with pytest.raises(TypeError, match="async for"):
        show(Async())


def test_a_terminal_is_not_steered(capsys):
    show(chat(FakeEngine(content("a\x1b[2Jb\x9b\tc\n", "d"))))
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}\tc\nd\n"


def test_an_interrupt_cancels_the_work_and_what_came_stays(capsys, monkeypatch):
    engine = FakeEngine([*content("So far"), HOLD])
    written = display._Terminal.add

    def add(self, part):
        written(self, part)
        raise KeyboardInterrupt

    monkeypatch.setattr(display._Terminal, "add", add)
    with pytest.raises(KeyboardInterrupt):
        show(chat(engine))
    assert capsys.readouterr().out == "So far\n(stopped)\n"
    assert engine.cancelled == 1
    monkeypatch.undo()
    engine.script = HELLO
    assert show(chat(engine)).choices[0].message.content == "Hello, world!"


# -- notebooks


class Kernel:
    """What is seen of a notebook: outputs with their updates, and the cell that runs."""

    def __init__(self, monkeypatch):
        self.bundles = []
        self.cell = "a"
        self.runs = 0
        ipython = types.ModuleType("IPython")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=self)
        output = types.ModuleType("IPython.display")
        output.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", output)

    def display(self, bundle, *, raw, display_id=None):
        assert raw
        self.bundles.append(bundle)
        return types.SimpleNamespace(update=lambda bundle, raw: self.bundles.append(bundle))

    def get_parent(self):
        return {"metadata": {"cellId": self.cell} if self.cell else {}, "header": {"msg_id": str(self.runs)}}

    def run(self, cell, **options):
        """One run of a cell that loads a model."""
        self.cell = cell
        self.runs += 1
        return gemmantle.load("gemma-4-nano-e", device="cpu", **options)


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def test_a_notebook_is_updated_ten_times_a_second_at_most_and_ends_in_markdown(kernel, monkeypatch):
    now = 0.0
    screen = display._Notebook(kernel.display, thoughts=False, clock=lambda: now)
    for _ in range(500):  # five seconds
        now += 0.01
        screen.add(display._Part("content", "**x** <b> "))
    screen.end()
    assert 45 <= len(kernel.bundles) <= 52
    assert "**x** &lt;b&gt; " in kernel.bundles[0]["text/html"]
    assert all("text/markdown" not in bundle for bundle in kernel.bundles[:-1])
    assert kernel.bundles[-1]["text/markdown"] == "**x** &lt;b> " * 500
    assert kernel.bundles[-1]["text/plain"] == "**x** <b> " * 500


def test_a_notebook_folds_thoughts_and_shows_calls(kernel, capsys):
    show(chat(FakeEngine([*THOUGHT, *content("Yes."), *CALL]), tools=TOOLS, reasoning_effort="high"))
    last = kernel.bundles[-1]["text/markdown"]
    assert re.search(
        r"<details><summary>Thoughts</summary><div[^>]*>Let me see&#46;</div></details>\n\nYes\.\n\n", last
    )
    assert "<code>f</code>" in last
    assert capsys.readouterr().out == ""


HOSTILE = """<script>1</script> [a](javascript:2) ![b](http://evil.example/?q) [c][d] `<i>` ``<u>`` <img src=x>

[d]: javascript:4

```html
<script>5</script>

</code></pre><script>6</script>
```
$\\href{javascript:7}{x}$
~~~
<script>8</script>"""


def test_text_of_a_model_neither_runs_nor_loads_anything(kernel):
    show(chat(FakeEngine([("thought", "<script>0</script>\n\n<b>"), *content(HOSTILE)]), reasoning_effort="high"))
    for bundle in kernel.bundles:
        for text in (bundle.get("text/html", ""), bundle.get("text/markdown", "")):
            tags = {tag.lower() for tag in re.findall(r"<\s*/?\s*([a-zA-Z]+)", text)}
            assert tags <= {"div", "details", "summary", "code", "pre", "br", "b"}, tags
    last = kernel.bundles[-1]["text/markdown"]
    assert not re.search(r"\]\s*[(:\[]", last)
    assert "\\href" not in last
    assert "<pre><code>&lt;script&gt;5&lt;/script&gt;" in last


def test_a_cell_that_is_run_again_closes_what_it_loaded(kernel, capsys):
    first = kernel.run("a", max_context=300)
    other = kernel.run("b", max_context=310)
    assert kernel.run("a", max_context=300) is first
    second = kernel.run("a", max_context=320)
    assert first.closed
    assert not other.closed
    assert "closed gemma-4-nano-e, which this cell had loaded before" in capsys.readouterr().out
    second.close()
    assert second.closed, "the run before gave back its own"
    third = kernel.run("a", max_context=330)
    assert capsys.readouterr().out == ""
    for engine in (third, other):
        engine.close()


def test_two_loads_of_one_run_are_two_places(kernel):
    def both():
        kernel.runs += 1
        return [gemmantle.load("gemma-4-nano-e", device="cpu", max_context=n) for n in (300, 310)]

    before = both()
    after = both()
    assert before == after
    assert not any(engine.closed for engine in after)
    for engine in after:
        engine.close()
        assert engine.closed


def test_front_ends_that_name_no_cells_are_left_alone(kernel):
    first = kernel.run("", max_context=300)
    second = kernel.run("", max_context=310)
    assert not first.closed
    first.close()
    second.close()
    assert not cells._engines.get(("", 0))
