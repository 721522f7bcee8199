"""The chat page in a real browser: what a person does, and what hostile model output must not do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import browser
import pytest
from fake_engine import HELLO, HOLD, FakeEngine, content

from gemmantle.errors import DeviceError

pytest.importorskip("uvicorn", reason="the server door runs on uvicorn: pip install 'gemmantle[server]'")

from serving import serving

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

IDLE = "document.querySelector('#stop').hidden"
LAST = "[...document.querySelectorAll('.theirs .body')].at(-1)"


@pytest.fixture(scope="module")
def tab():
    with browser.chromium() as page:
        yield page


@pytest.fixture
def page(tab):
    """The tab at a common size, without settings left from another test."""
    tab.errors.clear()
    tab.resize(1000, 800)
    yield tab
    assert tab.errors == []
    tab.value("document.body && location.protocol === 'http:' && (localStorage.clear(), sessionStorage.clear(), true)")
    tab.open("about:blank")


def ready(page, door):
    page.open(f"{door.url}/")
    page.until("document.querySelector('#model').options.length > 0")
    page.until("document.activeElement.id === 'text'")


def ask(page, text):
    page.click("#text")
    page.type(text)
    page.press("Enter")


def answered(page, count=1):
    page.until(f"document.querySelectorAll('.theirs .tools button').length >= {count} && {IDLE}")


def picture(page, name):
    """Kept where GEMMANTLE_PICTURES names a folder, for people to look at."""
    folder = os.environ.get("GEMMANTLE_PICTURES")
    if folder:
        page.picture(Path(folder) / f"{name}.png")


def test_a_conversation_streams_keeps_its_turns_and_shows_its_speed(page):
    engine = FakeEngine([*content("Hel"), HOLD, *content("lo, ", "world!")])
    with serving(engine) as door:
        ready(page, door)
        assert page.value("document.querySelector('#send').disabled")
        page.type("first line")
        page.press("Enter", shift=True)
        page.type("second line")
        page.press("Enter")
        page.until(f"{LAST} && {LAST}.textContent === 'Hel'")
        assert not page.value(IDLE)
        engine.release()
        answered(page)
        assert page.value(f"{LAST}.textContent") == "Hello, world!"
        assert "4 tokens" in page.value("document.querySelector('.facts').textContent")
        assert "user\nfirst line\nsecond line" in engine.prompts[0].text
        assert page.value("document.querySelector('#text').value") == ""
        engine.script = content("Again.")
        ask(page, "more")
        page.until("document.querySelectorAll('.theirs .facts').length === 2")
        assert "Hello, world!" in engine.prompts[1].text
        page.click("#fresh")
        assert page.value("document.querySelectorAll('.turn').length") == 0
        ask(page, "alone")
        answered(page)
        assert "Hello" not in engine.prompts[2].text


def test_thoughts_are_folded_and_stay_out_of_the_answer(page):
    engine = FakeEngine([("thought", "Let me see. "), HOLD, ("thought", "Yes."), *content("Four.")])
    with serving(engine) as door:
        ready(page, door)
        page.click("#thinking")
        ask(page, "2+2?")
        page.until("document.querySelector('.thought summary')?.textContent === 'Thinking …'")
        page.until("!document.querySelector('.thought').hidden")
        assert not page.value("document.querySelector('.thought').open")
        engine.release()
        answered(page)
        assert page.value(f"{LAST}.textContent") == "Four."
        assert page.value("document.querySelector('.thought summary').textContent") == "Thoughts"
        page.click(".thought summary")
        assert page.value("document.querySelector('.thought').open")
        assert page.value("document.querySelector('.thought div').textContent") == "Let me see. Yes."
        picture(page, "thoughts")
        assert "<|think|>" in engine.prompts[0].text
        page.click("#thinking")
        engine.script = HELLO
        ask(page, "again")
        page.until("document.querySelectorAll('.facts').length === 2")
        assert "Let me see" not in engine.prompts[1].text


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_ends_the_work_and_keeps_the_text(page, way):
    engine = FakeEngine([*content("So far"), HOLD])
    with serving(engine) as door:
        ready(page, door)
        ask(page, "Hi")
        page.until(f"{LAST}?.textContent === 'So far'")
        if way == "button":
            page.click("#stop")
        else:
            page.press("Escape")
        answered(page)
        assert page.value(f"{LAST}.textContent") == "So far"
        assert "stopped" in page.value("document.querySelector('.facts').textContent")
        while engine.cancelled == 0:
            page.value("1")
        engine.script = HELLO
        page.click(".theirs .again")
        page.until(f"{LAST}?.textContent === 'Hello, world!'")
        assert page.value("document.querySelectorAll('.turn').length") == 2


def test_settings_and_the_model_picker_reach_the_request_and_are_kept(page):
    first = FakeEngine(content("one"), name="first", aliases=())
    second = FakeEngine(content("two"), name="second", aliases=())
    with serving(first, second) as door:
        ready(page, door)
        page.click("#settings")
        page.click("#system")
        page.type("Speak like a pirate.")
        page.click("#temperature")
        page.type("0.3")
        page.click("#limit")
        page.type("5")
        picture(page, "settings")
        page.press("Escape")
        page.until("!document.querySelector('#panel').open")
        pick = "const m = document.querySelector('#model'); m.value = 'second'; m.dispatchEvent(new Event('change'))"
        page.value(f"(() => {{ {pick}; return true }})()")
        page.open(f"{door.url}/?again")
        page.until("document.querySelector('#model').value === 'second'")
        ask(page, "Hi")
        answered(page)
        assert page.value(f"{LAST}.textContent") == "two"
        assert first.submitted == []
        sampling = second.submitted[0][1]
        assert (sampling.temperature, sampling.max_tokens) == (0.3, 5)
        assert "Speak like a pirate." in second.prompts[0].text


HOSTILE = """<img src=x onerror="window.hit=1"> <script>window.hit=2</script>

**<b onmouseover=window.hit=3>bold</b>** `<i>` [bad](javascript:window.hit=4) [good](https://example.org/a_(b))

```html
<script>window.hit=5</script>
```

| <u>a</u> | b |
|---|---|
| <svg onload=window.hit=6> | \\| |
"""


def test_what_the_model_writes_is_text(page):
    engine = FakeEngine(content(*HOSTILE))
    with serving(engine) as door:
        ready(page, door)
        ask(page, "<b>mine</b>")
        answered(page)
        assert page.value("document.querySelector('.mine .body').textContent") == "<b>mine</b>"
        assert page.value("document.querySelectorAll('#log :is(img, script, b, i, svg, u)').length") == 0
        assert page.value(f"{LAST}.querySelector('pre').textContent") == "<script>window.hit=5</script>"
        links = page.value(f"[...{LAST}.querySelectorAll('a')].map((a) => [a.href, a.rel])")
        assert links == [["https://example.org/a_(b)", "noopener noreferrer"]]
        assert page.value("window.hit === undefined")


MARKDOWN = """# Title

Some *italic*, **bold**, ***both***, `co*de*`, snake_case_name, 2 * 3 * 4 and ~~gone~~.
Second line.

- one
- two
  1. inner
  2. more

     ```python
     print("**not bold**")
     ```
- three

3. third
4. fourth

> quoted **text**

| a | b |
|:--|--:|
| 1 | 2 |

---

```
open fence
"""


def test_markdown_is_drawn_the_same_whole_and_letter_by_letter(page):
    whole = FakeEngine(content(MARKDOWN), name="whole", aliases=())
    letters = FakeEngine(content(*MARKDOWN), name="letters", aliases=())
    drawn = []
    for engine in (whole, letters):
        with serving(engine) as door:
            ready(page, door)
            ask(page, "Write.")
            answered(page)
            drawn.append(page.value(f"{LAST}.innerHTML"))
            shape = page.value(
                f"[...{LAST}.children].map((n) => n.tagName + (n.className ? '.' + n.className : '')).join(' ')"
            )
    picture(page, "markdown")
    assert drawn[0] == drawn[1]
    assert shape == "H3 P UL OL BLOCKQUOTE DIV.wide HR DIV.code"
    text = drawn[0]
    for piece in (
        "<em>italic</em>", "<strong>bold</strong>", "<code>co*de*</code>", "snake_case_name", "2 * 3 * 4",
        "<s>gone</s>", '<ol start="1"><li>inner</li>', 'print("**not bold**")', '<ol start="3"><li>third</li>',
        "<strong>text</strong>", "<th>a</th>", "<td>2</td>",
    ):  # fmt: skip
        assert piece in text, piece
    assert page.value(f"{LAST}.querySelector('ol').closest('li').textContent.startsWith('two')")


def test_markup_that_never_closes_does_not_stall_the_page(page):
    text = "**a " * 3000 + "`" * 3000 + "[x](" * 3000 + "- " * 500 + "\n" + "> " * 2000 + "x\n" + "|a" * 2000
    with serving(FakeEngine(content(text))) as door:
        ready(page, door)
        ask(page, "Hi")
        answered(page)
        assert page.value("(() => { const t = performance.now(); draw(document.createElement('div'), "
                          f"{json.dumps(text)}); return performance.now() - t }})()") < 5000  # fmt: skip


def test_copy_puts_the_source_text_on_the_clipboard(page):
    with serving(FakeEngine(content("**x**\n\n```py\ncode\n```"))) as door:
        page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        ready(page, door)
        ask(page, "Hi")
        answered(page)
        page.click(".theirs > .tools button")
        page.until("document.querySelector('.theirs > .tools button').textContent === 'Copied'")
        assert page.value("navigator.clipboard.readText()") == "**x**\n\n```py\ncode\n```"
        page.click(".code button")
        page.until("document.querySelector('.code button').textContent === 'Copied'")
        assert page.value("navigator.clipboard.readText()") == "code"


def test_errors_are_told_and_can_be_tried_again(page):
    engine = FakeEngine([*content("half"), DeviceError("the device is lost")])
    with serving(engine) as door:
        ready(page, door)
        ask(page, "Hi")
        answered(page)
        assert page.value("document.querySelector('.problem').textContent") == "the device is lost"
        assert page.value(f"{LAST}.textContent") == "half"
        picture(page, "error")
        engine.script = HELLO
        page.click(".theirs .again")
        page.until(f"{LAST}?.textContent === 'Hello, world!'")
        assert page.value("document.querySelector('.problem')") is None
        page.click(".mine .again")
        assert page.value("document.querySelector('#text').value") == "Hi"
        assert page.value("document.querySelectorAll('.turn').length") == 0


def test_a_new_chat_ends_the_answer_that_runs(page):
    engine = FakeEngine([*content("So far"), HOLD])
    with serving(engine) as door:
        ready(page, door)
        ask(page, "Hi")
        page.until(f"{LAST}?.textContent === 'So far'")
        page.click("#fresh")
        page.until(f"{IDLE} && document.querySelectorAll('.turn').length === 0")
        while engine.cancelled == 0:
            page.value("1")
        engine.script = HELLO
        ask(page, "Hi")
        page.until(f"{LAST}?.textContent === 'Hello, world!'")


def test_the_page_waits_for_a_model_that_loads(page):
    with serving(FakeEngine(HELLO), loading=True) as door:
        page.open(f"{door.url}/")
        page.until("document.querySelector('#text').placeholder === 'The model is being loaded.'")
        door.application.loading = False
        page.until("document.querySelector('#model').options.length > 0")
        ask(page, "Hi")
        page.until(f"{LAST}?.textContent === 'Hello, world!'")


def test_a_server_with_a_key_asks_for_it(page):
    with serving(FakeEngine(HELLO), keys=["secret"]) as door:
        page.open(f"{door.url}/")
        page.until("document.querySelector('#panel').open && document.activeElement.id === 'key'")
        page.type("secret")
        page.press("Enter")
        page.until("document.querySelector('#model').options.length > 0 && !document.querySelector('#panel').open")
        ask(page, "Hi")
        page.until(f"{LAST}?.textContent === 'Hello, world!'")


def test_a_narrow_screen_needs_no_sideways_scrolling(page):
    engine = FakeEngine(content("w" * 300 + "\n\n```\n" + "c" * 300 + "\n```\n\n" + "|a" * 40 + "\n" + "|-" * 40))
    with serving(engine) as door:
        for width, dark in ((320, False), (390, True)):
            page.resize(width, 700, mobile=True, dark=dark)
            ready(page, door)
            page.type("Hi " * 40)
            page.click("#send")
            answered(page)
            wide = "Math.max(document.documentElement.scrollWidth, document.querySelector('#main').scrollWidth)"
            assert page.value(wide) <= width
            picture(page, f"narrow-{'dark' if dark else 'light'}")
            back = page.value("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, back[4:-1].split(","))) < 200) == dark


def test_the_keyboard_is_enough(page):
    with serving(FakeEngine(HELLO)) as door:
        ready(page, door)
        page.value("document.activeElement.blur()")
        page.press("/")
        assert page.value("document.activeElement.id") == "text"
        assert page.value("document.querySelector('#text').value") == ""
        names = page.value(
            "[...document.querySelectorAll('button, select, input, textarea')]"
            ".filter((n) => !(n.innerText || n.ariaLabel || n.labels?.length)).map((n) => n.id)"
        )
        assert names == []
        picture(page, "empty")
