"""Plain data as YAML text: mappings, lists, strings, numbers, booleans.

A writer only, so that the deployment files need no package beyond the base install.
Text that YAML could read as something else is quoted.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/.][-A-Za-z0-9_./]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def dump(document: Any) -> str:
    """``document`` in block style."""
    return "\n".join(_lines(document)) + "\n"


def dump_all(documents: list[Any]) -> str:
    """Several documents in one stream."""
    return "---\n".join(dump(document) for document in documents)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _entry(key, item)]
    if isinstance(value, list) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(key: str, value: Any) -> list[str]:
    name = _scalar(key)
    if isinstance(value, dict) and value:
        return [f"{name}:", *_indent(_lines(value))]
    if isinstance(value, list) and value:
        return [f"{name}:", *_indent(_lines(value))]
    if isinstance(value, str) and _block(value):
        return [f"{name}: |", *_indent(value[:-1].split("\n"))]
    return [f"{name}: {_scalar(value)}"]


def _item(value: Any) -> list[str]:
    first, *rest = _lines(value)
    return [f"- {first}", *_indent(rest)]


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _block(text: str) -> bool:
    """Whether a literal block keeps the text exactly."""
    lines = text.split("\n")
    return (
        len(lines) > 2
        and lines[-1] == ""
        and lines[-2] != ""
        and lines[0] != ""
        and lines[0][0] not in " #"
        and all(line.isprintable() for line in lines)
    )


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _is_plain(value):
        return value
    # Python's escapes, \x41 \u0041 \U00000041 \n and so on, are all YAML's too.
    escaped = value.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'


def _is_plain(text: str) -> bool:
    word = text.lower().strip(".")
    return bool(_PLAIN.fullmatch(text)) and bool(word) and word not in _WORDS
