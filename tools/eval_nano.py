#!/usr/bin/env python3
"""Evaluates the embedded models on held-out items, greedily and through the real client.

    eval_nano.py [MODEL ...] [--items 300] [--show 3]      prints the table of docs/nano.md

MODEL is a name or a folder; default: every embedded model. An item is right when the answer is exactly the expected
text (JSON and calls are compared as values). `--show` prints some wrong answers of every task.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nano_corpus as corpus

from gemmantle import OpenAI

TITLES = {
    "sum": "sums and differences, thinking off",
    "sum_thinking": "sums and differences, thinking on",
    "capital": "capitals, and refusal for other countries",
    "extraction": "named fields as JSON",
    "call": "choosing and filling a tool",
    "result": "answering from a tool's result",
    "memory": "remembering over turns",
}


def ask(client: Any, model: str, item: corpus.Item) -> Any:
    c = item.conversation
    options: dict[str, Any] = {"tools": list(c.tools)} if c.tools else {}
    return client.chat.completions.create(
        model=model,
        messages=corpus.messages(c, with_call=item.task == "result"),
        temperature=0,
        max_completion_tokens=160,
        reasoning_effort="high" if c.thinking else "none",
        **options,
    )


def is_right(item: corpus.Item, message: Any) -> bool:
    text = (message.content or "").strip()
    if item.task == "call":
        wanted = item.exchange.call
        if wanted is None or len(message.tool_calls or []) != 1:
            return False
        function = message.tool_calls[0].function
        return bool(function.name == wanted.name and parsed(function.arguments) == wanted.arguments)
    if item.task == "extraction":
        return bool(parsed(text) == parsed(item.answer))
    return bool(text == item.answer and not message.tool_calls)


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def said(message: Any) -> str:
    calls = [f"{c.function.name}({c.function.arguments})" for c in message.tool_calls or []]
    return " ".join([repr(message.content or ""), *calls])


def evaluate(client: Any, model: str, count: int, show: int) -> dict[str, float]:
    """Share of right answers by task."""
    out = {}
    with ThreadPoolExecutor(16) as pool:
        for task in corpus.EVAL_TASKS:
            items = corpus.eval_items(task, count)
            messages = [r.choices[0].message for r in pool.map(lambda item: ask(client, model, item), items)]
            wrong = [(i, m) for i, m in zip(items, messages, strict=True) if not is_right(i, m)]
            out[task] = 1 - len(wrong) / count
            for item, message in wrong[:show]:
                asked, got = item.exchange.user, said(message)
                print(f"  {model} {task}: {asked!r} wants {item.answer!r}, got {got}", file=sys.stderr)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--show", type=int, default=0)
    arguments = parser.parse_args()
    models: list[str] = arguments.models
    with OpenAI() as client:
        if not models:
            models = [m.id for m in client.models.list() if m.id.startswith("gemma-4-nano-")]
        begun = time.monotonic()
        shares = [evaluate(client, m, arguments.items, arguments.show) for m in models]
    names = [Path(m).name for m in models]
    print(f"| {arguments.items} held-out items each, greedy | " + " | ".join(f"`{n}`" for n in names) + " |")
    print("|---|" + "---|" * len(models))
    for task, title in TITLES.items():
        print(f"| {title} | " + " | ".join(f"{100 * s[task]:.1f} %" for s in shares) + " |")
    print(f"evaluated in {time.monotonic() - begun:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
