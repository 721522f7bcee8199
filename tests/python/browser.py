"""A headless Chromium driven over the DevTools protocol: evaluate, type, press keys, take pictures."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Page", "chromium", "missing"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_S = 60


def missing() -> str | None:
    """Why no browser can be driven here, or None."""
    try:
        import websockets  # noqa: F401
    except ImportError:
        return "driving a browser needs the Python package 'websockets'"
    if not any(map(shutil.which, _NAMES)):
        return f"no Chromium is installed (looked for {', '.join(_NAMES)})"
    return None


class Page:
    """One tab. Script errors of the page are collected in `errors`."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(_TIMEOUT_S))
            self._note(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The JSON value of an expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait in the page, frame by frame, until a condition is true; gives its value."""
        return self.value(
            f"""new Promise((done, fail) => {{
              const end = Date.now() + {_TIMEOUT_S // 2}e3;
              const look = () => {{
                const value = {condition};
                if (value) done(value);
                else if (Date.now() > end) fail(new Error({json.dumps(condition)} + " in " + document.body.innerText));
                else setTimeout(look, 10);
              }};
              look();
            }})"""
        )

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code = {"Enter": 13, "Escape": 27, "/": 191}.get(key, 0)
        text = {"Enter": "\r", "/": "/"}.get(key)
        fields: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, which must be the one that is hit there."""
        where = self.value(
            f"""(() => {{
              const node = document.querySelector({json.dumps(selector)});
              node.scrollIntoView({{ block: "center" }});
              const box = node.getBoundingClientRect();
              const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
              const hit = document.elementFromPoint(x, y);
              return node.contains(hit) ? [x, y] : null;
            }})()"""
        )
        assert where, f"{selector} is not visible, or covered"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def resize(self, width: int, height: int, *, mobile: bool = False, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] == "security":
            self.errors.append(message["params"]["entry"]["text"])


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """A page in a browser of its own, with an empty profile."""
    from websockets.sync.client import connect

    binary = next(path for path in map(shutil.which, _NAMES) if path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser starts as root in containers too, where its own sandbox cannot; the page under test is ours.
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-extensions", "--remote-debugging-port=0",
                   f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            address = next(
                (line.split("listening on ", 1)[1].strip() for line in process.stderr if "listening on ws" in line),
                None,
            )
            assert address, "the browser ended before it listened"
            # The pipe must not fill up while nobody reads it.
            drain = threading.Thread(target=process.stderr.read, daemon=True)
            drain.start()
            with connect(address, max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.kill()
            process.wait()
            drain.join(10)
            process.stderr.close()
