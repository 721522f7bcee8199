"""Schemas of the kind that OpenAPI documents hold (spec api A-13): a few here, all by `schema_check.py`."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import re

import openai
import pytest

pytest.importorskip("jsonschema", reason="pip install jsonschema[format-nongpl]")
pytest.importorskip("llguidance", reason="grammars need the extra: pip install 'gemmantle[structured]'")

import schema_check

import gemmantle
from gemmantle.json_schema import DAY, TIME, read_schema

FORMATS = {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}


@pytest.fixture(scope="module")
def nano():
    with gemmantle.load("gemma-4-nano-e", device="cpu") as engine:
        yield engine


def test_the_oracle_checks_every_format_that_is_claimed():
    assert set(schema_check.Validator.FORMAT_CHECKER.checkers) >= FORMATS, "pip install jsonschema[format-nongpl]"


def test_a13_every_schema_is_refused_by_name_or_every_document_is_valid(nano):
    first = 30_000
    seeds = range(first, first + 40)
    client = nano.async_client(max_retries=0)
    tally = asyncio.run(schema_check.check(client, nano.name, seeds, limit=300))
    print(f"seeds {seeds.start}..{seeds.stop - 1}\n{tally}")
    assert not tally.faults
    assert sum(tally.refused.values()) < len(seeds) // 2
    assert tally.valid > len(seeds)


def refusal(engine, schema):
    """The words of the refusal of one property."""
    form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        engine.client(max_retries=0).chat.completions.create(
            model=engine.name, messages=[{"role": "user", "content": "x"}], max_tokens=1, response_format=form
        )
    assert caught.value.code == "invalid_json_schema"
    return caught.value.body["message"]


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "string", "pattern": "a(?=b)"}, "/pattern"),
        ({"type": "string", "pattern": "(", "nullable": True}, "/pattern"),
        ({"type": "array", "items": {"type": "string", "pattern": "("}, "nullable": True}, "/items/pattern"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "/minLength"),
        ({"type": "string", "format": "time", "maxLength": 3}, "/format"),
        ({"type": "string", "format": "time", "pattern": "^a$"}, "/pattern"),
        ({"type": "string", "format": "uuid", "maxLength": 3}, "/format"),
        ({"type": "string", "format": "hostname", "minLength": 300}, "/minLength"),
        ({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 5}]}, "/oneOf"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "/allOf"),
        ({"type": "object", "unevaluatedProperties": False}, "/unevaluatedProperties"),
        ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
    ],
)
def test_a_refusal_points_to_the_keyword(nano, schema, pointer):
    whole = {"type": "object", "properties": {"a/b": schema}, "required": ["a/b"]}
    words = refusal(nano, whole)
    assert f" at '#/properties/a~1b{pointer}': `{pointer.rpartition('/')[2]}`" in words
    assert schema_check.keyword_at(whole, re.search("'(.*?)'", words)[1])


def test_days_and_hours_are_those_that_exist():
    rng = random.Random(5)
    for _ in range(20_000):
        text = f"{rng.choice([0, 4, 100, 1900, 2000, 2023, 2024]):04}-{rng.randrange(14):02}-{rng.randrange(33):02}"
        try:
            datetime.date.fromisoformat(text)
            is_day = True
        except ValueError:
            is_day = False
        assert bool(re.fullmatch(DAY, text)) == is_day, text
    assert re.fullmatch(TIME, "23:59:59.5+01:00")
    for wrong in ("24:00:00Z", "23:59:60Z", "00:60:00Z", "10:00:00", "10:00:00+24:00"):
        assert not re.fullmatch(TIME, wrong), wrong


def test_pointers_lead_back_to_what_the_caller_wrote():
    schema = {
        "nullable": True,
        "properties": {"at": {"type": "string", "format": "date-time", "nullable": True}, "h": {"format": "hostname"}},
    }
    read = read_schema(schema, strict=True, param="schema")
    read.spell_formats()
    text = json.dumps(read.schema)
    assert "date-time" not in text
    assert read.pointer_of("#/anyOf/0/properties/at/anyOf/0/pattern") == "#/properties/at/format"
    assert read.pointer_of("#/anyOf/0/properties/h/maxLength") == "#/properties/h/format"
    assert read.pointer_of("#/anyOf/0/properties") == "#/properties"
    assert read.pointer_of("#/anyOf") == "#"
