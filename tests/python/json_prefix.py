"""Whether a text is the beginning of some JSON value."""

from __future__ import annotations

import json

# What may be missing between the cut and the closing brackets: a value, a name with its value, the rest of a word.
_MIDDLES = ("", "null", ":null", '"k":null', "0", "rue", "ue", "e", "alse", "lse", "se", "ull", "ll", "l")


def is_prefix_of_json(text: str) -> bool:
    """Whether some ending makes it JSON: the brackets and the string that are open say which."""
    closing, in_string, skip = [], False, False
    for char in text:
        if in_string:
            in_string, skip = (skip or char != '"'), char == "\\" and not skip
        elif char == '"':
            in_string = True
        elif char in "{[":
            closing.append("}" if char == "{" else "]")
        elif char in "}]":
            closing.pop()
    rest = '"' * in_string
    tail = "".join(reversed(closing))
    for middle in _MIDDLES:
        try:
            json.loads(text + rest + middle + tail)
        except ValueError:
            continue
        return True
    return False
