"""Every schema is refused by name, or every document written under it is valid (spec api A-13).

Run:  PYTHONPATH=python python tests/python/schema_check.py [--count 1200] [--first 0]
Seeds `first` .. `first + count - 1` each make one schema; the embedded model writes three documents under it at
temperature 1.5, through the client. The oracle is `jsonschema` with the checks of formats. What the length limit cut is
counted apart: it is a prefix, neither valid nor invalid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import openai
from schema_maker import make_schema

Validator = jsonschema.Draft202012Validator  # its own list of formats, not that of every draft
SEEDS = (1, 2, 3)  # of the documents of one schema
AT_ONCE = 12  # schemas
POINTER = re.compile(r" at '(#.*?)': ")


@dataclass
class Tally:
    """What became of the schemas and of their documents."""

    schemas: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by keyword
    valid: int = 0
    cut: int = 0
    only_cut: list[int] = field(default_factory=list)  # schemas without a finished document
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        refused = sum(self.refused.values())
        lines = [
            f"{self.schemas} schemas: {self.schemas - refused} accepted, {refused} refused",
            f"{self.valid + self.cut} documents: {self.valid} valid, {self.cut} cut by the limit; "
            f"{len(self.only_cut)} schemas have none that ended",
            "refused by: " + ", ".join(f"{word} {count}" for word, count in self.refused.most_common()),
            f"{len(self.faults)} faults",
        ]
        return "\n".join([*lines, *self.faults])


def without_nullable(schema: Any) -> Any:
    """The same schema for a validator that knows no `nullable`: an alternative to null."""
    if isinstance(schema, list):
        return [without_nullable(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    clean = {key: without_nullable(inner) for key, inner in schema.items()}
    if clean.get("nullable") is True:
        del clean["nullable"]
        return {"anyOf": [clean, {"type": "null"}]}
    return clean


def keyword_at(schema: Any, pointer: str) -> str | None:
    """The keyword that a JSON pointer of a schema ends in; None where it points to nothing or to a name."""
    node, name, is_name = schema, "", False
    for part in pointer.split("/")[1:]:
        is_name = name in ("properties", "patternProperties", "$defs", "definitions") and not is_name
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node:
            node = node[name]
        else:
            return None
    return name if not is_name else None


async def check_seed(client: openai.AsyncOpenAI, model: str, seed: int, tally: Tally, limit: int) -> None:
    """One schema and its documents into the tally."""
    schema = make_schema(random.Random(seed))
    form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}
    tally.schemas += 1

    async def write(document: int) -> Any:
        return await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Give me one as JSON."}],
            temperature=1.5,
            seed=document,
            max_completion_tokens=limit,
            response_format=form,  # type: ignore[arg-type]
            extra_body={"top_k": 0, "top_p": 1},
        )

    try:
        answers = await asyncio.gather(*map(write, SEEDS))
    except openai.BadRequestError as error:
        tally.refused[_keyword_of(error, schema, seed, tally)] += 1
        return
    except openai.APIError as error:
        tally.faults.append(f"seed {seed}: {type(error).__name__}: {error}")
        return
    validator = Validator(without_nullable(schema), format_checker=Validator.FORMAT_CHECKER)
    ended = 0
    for choice in (answer.choices[0] for answer in answers):
        if choice.finish_reason == "length":
            tally.cut += 1
            continue
        ended += 1
        try:
            validator.validate(json.loads(choice.message.content))
            tally.valid += 1
        except (ValueError, jsonschema.ValidationError) as error:
            what = str(error).splitlines()[0]
            where = getattr(error, "json_path", "$")
            tally.faults.append(f"seed {seed}: {where}: {what[:200]} in {choice.message.content[:300]!r}")
    if not ended:
        tally.only_cut.append(seed)


def _keyword_of(error: openai.BadRequestError, schema: Any, seed: int, tally: Tally) -> str:
    """The keyword that a refusal names; a refusal that names none is a fault."""
    text = str(error.body["message"]) if isinstance(error.body, dict) else str(error)
    place = POINTER.search(text)
    keyword = keyword_at(schema, place[1]) if place else None
    if error.code != "invalid_json_schema" or keyword is None:
        tally.faults.append(f"seed {seed}: refused without a keyword: {error.code} {text[:300]}")
    return keyword or "?"


async def check(client: openai.AsyncOpenAI, model: str, seeds: range, *, limit: int = 600) -> Tally:
    """All schemas of the seeds, some at once."""
    tally = Tally()
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with slots:
            await check_seed(client, model, seed, tally, limit)

    await asyncio.gather(*map(one, seeds))
    return tally


def main() -> int:
    import gemmantle

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--model", default="gemma-4-nano-e")
    options = parser.parse_args()
    started = time.perf_counter()
    with gemmantle.load(options.model) as engine:
        seeds = range(options.first, options.first + options.count)
        tally = asyncio.run(check(engine.async_client(max_retries=0), engine.name, seeds))
    print(tally)
    print(f"{time.perf_counter() - started:.0f} s, seeds {seeds.start}..{seeds.stop - 1}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
