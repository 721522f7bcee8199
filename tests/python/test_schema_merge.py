"""Merged schemas mean what their parts mean together: held against `jsonschema` over random parts and values."""

from __future__ import annotations

import random

import pytest

from gemmantle.chat.schema_merge import Conflict, merged
from gemmantle.chat.tools import read_tools
from gemmantle.errors import RequestError

jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")

NAMES = ["a", "b", "c"]
SEEDS = range(800)


def random_schema(rng, depth=0):
    kind = rng.random()
    if kind < 0.1 and depth:
        return rng.choice([True, {}, {"$ref": "#/$defs/Base"}])
    if kind < 0.2 and depth < 2:
        return {rng.choice(["anyOf", "allOf"]): [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind < 0.3:
        return {"enum": rng.sample([1, 2, 3, "x", "y", None, True], rng.randint(1, 4))}
    if kind < 0.5:
        least, most = rng.choice(["minimum", "exclusiveMinimum"]), rng.choice(["maximum", "exclusiveMaximum"])
        low = rng.randint(0, 4)
        bounds = {least: low, most: low + 3}
        return {"type": rng.choice(["integer", "number", ["integer", "null"]]), **bounds}
    if kind < 0.6:
        return {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(1, 4)}
    if kind < 0.7:
        return {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(1, 3)}
    if depth > 2:
        return {"type": ["object", "null"]}
    names = rng.sample(NAMES, rng.randint(1, 3))
    schema = {
        "type": "object",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }
    if rng.random() < 0.4:
        schema["additionalProperties"] = rng.choice([False, {"type": "integer"}])
    return schema


def random_value(rng, depth=0):
    kind = rng.random()
    if kind < 0.35:
        return rng.choice([0, 1, 2, 3, 4.5, "", "x", "yy", "xyz", None, True])
    if kind < 0.45 and depth < 3:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {name: random_value(rng, depth + 1) for name in rng.sample(NAMES, rng.randint(0, 3))} if depth < 3 else 1


def fully(node, resolve):
    """Merged here and in every property and item, as a grammar meets them."""
    if isinstance(node, dict) and node != {}:
        node = merged(node, resolve)
    if not isinstance(node, dict):
        return node
    whole = dict(node)
    if "properties" in whole:
        whole["properties"] = {name: fully(inner, resolve) for name, inner in whole["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(whole.get(key), dict):
            whole[key] = fully(whole[key], resolve)
    for key in ("anyOf", "oneOf"):
        if key in whole:
            whole[key] = [fully(inner, resolve) for inner in whole[key]]
    return whole


def test_merged_means_all_of_the_parts():
    compared = 0
    base = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for seed in SEEDS:
        rng = random.Random(seed)
        parts = [random_schema(rng, 1) for _ in range(rng.randint(1, 3))]
        homes = {"$defs": {"Base": base}}
        schema = {"allOf": parts, **homes}
        try:
            whole = fully(schema, lambda _: base)
        except Conflict:
            continue
        whole = {**whole, **homes} if isinstance(whole, dict) else whole
        expected = jsonschema.Draft202012Validator(schema)
        found = jsonschema.Draft202012Validator(whole)
        for _ in range(30):
            value = random_value(rng)
            assert found.is_valid(value) == expected.is_valid(value), (seed, schema, whole, value)
            compared += expected.is_valid(value)
    assert compared > 200  # values that are valid, or nothing was shown


@pytest.mark.parametrize(
    "node",
    [
        {"allOf": [{"pattern": "a"}, {"pattern": "b"}]},
        {"allOf": [{"format": "date"}, {"format": "uuid"}]},
        {"allOf": [{"prefixItems": [{}]}, {"prefixItems": [True, {}]}]},
        {"allOf": [{"anyOf": [{}] * 65}, {"type": "string"}]},
    ],
)
def test_what_no_schema_can_say_is_a_conflict(node):
    with pytest.raises(Conflict):
        merged(node, lambda _: {})


def test_a_schema_within_itself_ends():
    node = {"allOf": [{"$ref": "#"}, {"type": "object"}]}
    with pytest.raises(Conflict, match="without end"):
        merged(node, lambda _: node)


def arguments_of(schema):
    """The rules of a strict function with these parameters."""
    from gemmantle.chat.call_grammar import CallRules

    rules = CallRules({"<|tool_call>": 1, "<tool_call|>": 2, '<|"|>': 3})
    [tool] = read_tools([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    rules.add(tool, strict=True, param="tools[0].function.parameters")
    return rules.lark()


def test_parameters_may_be_put_together():
    pet = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    cat = {"allOf": [{"$ref": "#/$defs/Pet"}, {"properties": {"lives": {"type": "integer", "maximum": 9}}}]}
    together = arguments_of({**cat, "$defs": {"Pet": pet}})
    written = arguments_of(
        {
            "allOf": [{}],
            "type": "object",
            "properties": {"name": {"type": "string"}, "lives": {"type": "integer", "maximum": 9}},
            "required": ["name"],
        }
    )
    assert together.splitlines()[1:] == written.splitlines()[1:]


def test_a_type_that_extends_another_may_hold_itself():
    node = {
        "allOf": [
            {"$ref": "#/$defs/Base"},
            {"type": "object", "properties": {"next": {"allOf": [{"$ref": "#/$defs/Node"}, {"required": ["id"]}]}}},
        ]
    }
    base = {"type": "object", "properties": {"id": {"type": "integer"}}}
    assert "next" in arguments_of({"$ref": "#/$defs/Node", "$defs": {"Base": base, "Node": node}})


def test_a_conflict_is_refused_with_its_place():
    schema = {"type": "object", "properties": {"a": {"allOf": [{"pattern": "x"}, {"pattern": "y"}]}}}
    with pytest.raises(RequestError, match=r"'#/properties/a'.*two different `pattern`") as caught:
        arguments_of(schema)
    assert caught.value.code == "invalid_json_schema"
