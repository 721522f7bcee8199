"""Time to load and memory of a model, in a process of its own: `python -m gemmantle.bench.footprint '{"model": ...}'`.

The process has imported the package when the clock starts. Memory is RssAnon + RssFile of /proc/self/status.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gemmantle

__all__ = ["measure"]

_SHORT, _ANSWER, _LONG = 16, 64, 512  # tokens
_TEXT = (  # its words are more than 16 tokens in every vocabulary
    "A text that the tokenizer of the model has to encode before there is a first token: what is put off until the "
    "first request belongs to the time that its caller waits."
)


def measure(model: str, **options: Any) -> dict[str, float]:
    """Seconds to load and to the first token of a text cut to 16 tokens; GB after that, and after a reply and a prompt.

    options: arguments of `gemmantle.load`. Raises RuntimeError with the words of the process when it fails.
    """
    task = json.dumps({"model": model, "options": options})
    done = subprocess.run([sys.executable, "-m", __name__, task], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"measuring load and memory failed: {lines[-1] if lines else done.returncode}")
    facts: dict[str, float] = json.loads(done.stdout)
    return facts


def _resident_gb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kib = [int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "RssFile:"))]
    return sum(kib) * 1024 / 1e9


def _run(model: str, options: dict[str, Any]) -> dict[str, float]:
    started = time.perf_counter()
    with gemmantle.load(model, **options) as engine:
        loaded = time.perf_counter()
        facts = engine.info()
        long = min(_LONG, int(facts["max_context"]) - 1)
        ids = [2, *(10 + index * 7919 % (int(facts["vocabulary"]) - 10) for index in range(long - 1))]

        def answer(prompt: list[int], tokens: int) -> None:
            request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            list(engine.generate([request]))

        before = time.perf_counter()  # info() is not part of what a caller waits for
        answer(engine.encode_prompt(_TEXT)[:_SHORT] if facts["tokenizer"] else ids[:_SHORT], 1)
        first = (loaded - started) + (time.perf_counter() - before)
        after_load = _resident_gb()
        answer(ids[:_SHORT], min(_ANSWER, int(facts["max_context"]) - _SHORT))
        answer(ids, 1)
        return {
            "load_s": loaded - started,
            "load_to_first_token_s": first,
            "resident_after_load_gb": after_load,
            "resident_gb": _resident_gb(),
        }


if __name__ == "__main__":
    print(json.dumps(_run(**json.loads(sys.argv[1]))))
