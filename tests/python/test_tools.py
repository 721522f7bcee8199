"""Tool definitions in Gemma 4's declaration syntax."""

from __future__ import annotations

import re

import pytest

from gemmantle.chat.segments import Segments
from gemmantle.chat.template import Prompt
from gemmantle.chat.tools import read_tools, write_call, write_declaration, write_result
from gemmantle.errors import RequestError


def text_of(write, *arguments):
    out = Segments()
    write(out, *arguments)
    return Prompt(out.take()).text.replace('<|"|>', "§")


def declared(parameters=None, **function):
    function = {"name": "f", "description": "d", **function}
    if parameters is not None:
        function["parameters"] = parameters
    [tool] = read_tools([{"type": "function", "function": function}])
    return text_of(write_declaration, tool)


def properties(**schemas):
    """The declaration of an object's properties, between their braces."""
    text = declared({"type": "object", "properties": schemas})
    return text.removeprefix("declaration:f{description:§d§,parameters:{properties:{").removesuffix("},type:§OBJECT§}}")


def test_the_example_of_the_specification():
    parameters = {
        "type": "object",
        "properties": {
            "mode": {"type": "string", "enum": ["FAST", "DEEP"], "nullable": True},
            "filters": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "field": {"type": "string"},
                        "values": {"type": "array", "items": {"type": "string"}},
                    },
                    "required": ["field"],
                },
            },
            "meta": {
                "type": "object",
                "properties": {"limit": {"type": "integer", "description": "Maximum"}},
                "required": ["limit"],
            },
        },
        "required": ["mode", "filters"],
    }
    assert declared(parameters, name="search", description="Search records") == (
        "declaration:search{description:§Search records§,parameters:{properties:{filters:{items:{properties:{field:"
        "{type:§STRING§},values:{items:{type:§STRING§},type:§ARRAY§}},required:[§field§],type:§OBJECT§},type:§ARRAY§},meta:{"
        "properties:{limit:{description:§Maximum§,type:§INTEGER§}},required:[§limit§],type:§OBJECT§},mode:{enum:[§FAST§,"
        "§DEEP§],nullable:true,type:§STRING§}},required:[§mode§,§filters§],type:§OBJECT§}}"
    )


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ({}, "declaration:f{description:§d§}"),
        ({"parameters": {}}, "declaration:f{description:§d§}"),
        ({"description": None}, "declaration:f{description:§§}"),
        (
            {"parameters": {"type": "object", "properties": {}}},
            "declaration:f{description:§d§,parameters:{type:§OBJECT§}}",
        ),
        (
            {"parameters": {"properties": {"a": {"type": "number"}}}},
            "declaration:f{description:§d§,parameters:{properties:{a:{type:§NUMBER§}},type:§OBJECT§}}",
        ),
        (
            {"response": {"type": "object", "description": "r"}},
            "declaration:f{description:§d§,response:{description:§r§,type:§OBJECT§}}",
        ),
    ],
)
def test_declarations(function, text):
    assert declared(**function) == text


def test_properties_are_sorted_without_regard_to_case():
    text = properties(b={"type": "null"}, a2={"type": "null"}, A={"type": "null"}, _z={"type": "null"})
    assert re.findall(r"(\w+):\{", text) == ["_z", "A", "a2", "b"]


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ({"type": "object"}, "properties:{},type:§OBJECT§"),
        ({"type": "object", "additionalProperties": False}, "properties:{},type:§OBJECT§"),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            "items:{items:{§type§:§integer§},type:§ARRAY§},type:§ARRAY§",
        ),
        (
            {"type": "array", "items": {"type": "string", "enum": ["a"]}},
            "items:{enum:[§a§],type:§STRING§},type:§ARRAY§",
        ),
        ({"type": ["string", "null"]}, "nullable:true,type:§STRING§"),
        ({"type": ["string", "integer"]}, "description:§or integer§,type:§STRING§"),
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "description": "n"},
            "description:§n§,nullable:true,type:§INTEGER§",
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "description:§(or string)§,type:§INTEGER§"),
        ({"type": "integer", "default": 3, "minimum": 1}, "description:§default: 3; minimum: 1§,type:§INTEGER§"),
        (
            {"type": "string", "description": "when", "format": "date"},
            'description:§when (format: "date")§,type:§STRING§',
        ),
        ({"type": "integer", "enum": [1, 2]}, "description:§one of: [1, 2]§,type:§INTEGER§"),
        ({"enum": ["a", "b"]}, "enum:[§a§,§b§],type:§STRING§"),
        ({"const": "a"}, "enum:[§a§],type:§STRING§"),
        ({"$ref": "#/$defs/Color"}, "description:§a color§,enum:[§red§],type:§STRING§"),
        ({"$ref": "#/$defs/Color", "description": "own"}, "description:§own§,enum:[§red§],type:§STRING§"),
        (
            {"allOf": [{"$ref": "#/$defs/Color"}], "default": "red"},
            'description:§a color (default: "red")§,enum:[§red§],type:§STRING§',
        ),
        (
            {"$ref": "#/$defs/Node"},
            "properties:{child:{properties:{},type:§OBJECT§},name:{type:§STRING§}},type:§OBJECT§",
        ),
        ({}, "type:§§"),
        (True, "type:§§"),
    ],
)
def test_schemas_keep_what_the_declaration_can_say(schema, body):
    definitions = {
        "Color": {"type": "string", "enum": ["red"], "description": "a color", "title": "Color"},
        "Node": {"type": "object", "properties": {"name": {"type": "string"}, "child": {"$ref": "#/$defs/Node"}}},
    }
    text = declared({"type": "object", "properties": {"x": schema}, "$defs": definitions})
    assert text == f"declaration:f{{description:§d§,parameters:{{properties:{{x:{{{body}}}}},type:§OBJECT§}}}}"


def test_values_in_calls():
    arguments = {
        "s": 'line1\nline2 "q" {x}',
        "n": -1.5,
        "t": True,
        "l": [],
        "o": {},
        "nest": {"k": [{"a": None}]},
    }
    assert text_of(write_call, "f", arguments) == (
        '<|tool_call>call:f{l:[],n:-1.5,nest:{k:[{a:null}]},o:{},s:§line1\nline2 "q" {x}§,t:true}<tool_call|>'
    )
    numbers = {"a": 1.0, "b": 1e21, "c": 1e-7, "d": 10**30, "e": False, "f": (1, 2)}
    assert text_of(write_call, "f", numbers) == (
        "<|tool_call>call:f{a:1.0,b:1e+21,c:1e-07,d:1000000000000000000000000000000,e:false,f:[1,2]}<tool_call|>"
    )
    assert text_of(write_result, "f", {"b": 1, "A": "x"}) == "<|tool_response>response:f{A:§x§,b:1}<tool_response|>"


def test_the_inner_mapping_alone_is_a_tool_too():
    assert read_tools([{"name": "f"}]) == read_tools([{"type": "function", "function": {"name": "f"}}])
    assert read_tools(None) == []


@pytest.mark.parametrize(
    ("tool", "param", "words"),
    [
        (5, "tools[0]", "int"),
        ({"type": "web_search"}, "tools[0].type", "web_search"),
        ({"type": "function", "function": None}, "tools[0].function", "null"),
        ({"type": "function", "function": {}}, "tools[0].function.name", "None"),
        ({"type": "function", "function": {"name": "a b"}}, "tools[0].function.name", "a b"),
        ({"type": "function", "function": {"name": "f{"}}, "tools[0].function.name", "f{"),
        ({"name": "f", "description": 5}, "tools[0].description", "int"),
        ({"name": "f", "parameters": [1]}, "tools[0].parameters", "list"),
        ({"name": "f", "parameters": {"$ref": "http://x"}}, "tools[0].parameters", "http://x"),
        ({"name": "f", "parameters": {"$ref": "#/$defs/none"}}, "tools[0].parameters", "not there"),
    ],
)
def test_bad_tools_are_refused_by_path(tool, param, words):
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        read_tools([tool])
    assert caught.value.param == param


def test_schemas_of_any_depth_and_fan_out_end_with_words():
    deep = {"type": "string"}
    for _ in range(500):
        deep = {"type": "object", "properties": {"a": deep}}
    with pytest.raises(RequestError, match="levels"):
        read_tools([{"name": "f", "parameters": deep}])
    bomb = {f"d{i}": {"properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "abcdefgh"}} for i in range(40)}
    bomb["d40"] = {"type": "string"}
    with pytest.raises(RequestError, match="parts"):
        read_tools([{"name": "f", "parameters": {"$ref": "#/$defs/d0", "$defs": bomb}}])
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(500)} | {"d500": {}}
    with pytest.raises(RequestError, match="references"):
        read_tools([{"name": "f", "parameters": {"$ref": "#/$defs/d0", "$defs": chain}}])
    loop = {"allOf": [{"$ref": "#"}]}
    assert read_tools([{"name": "f", "parameters": loop}])[0].parameters == {"type": "object"}
