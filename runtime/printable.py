"""Text from outside, made safe to print: no terminal escapes, no reversed lines.

A server's status details, a manifest or a generated text may hold anything. Printed as
it is, an escape sequence rewrites the terminal, and a bidirectional mark shows words in
another order than they have (CVE-2021-42574). Each such character is shown as the
escape that Python and JSON have for it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed
_MARKS = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
_SURROGATES = "\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_MARKS}{_SURROGATES}]")
_UNSAFE_IN_JSON = re.compile(f"[\x7f-\x9f{_MARKS}{_SURROGATES}]")


def printable(text: object) -> str:
    """``text`` with control characters and direction marks escaped.

    Line feeds and tabs stay.
    """
    return _UNSAFE.sub(_escape, str(text))


def sentence(text: object) -> str:
    """``text`` on one line, and printable."""
    return printable(" ".join(str(text).split()))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Valid JSON that is safe to print: numbers that JSON lacks become null.

    Raises:
        TypeError: ``value`` holds something that JSON has no form for.
    """
    text = json.dumps(
        _finite(value), ensure_ascii=False, allow_nan=False, indent=indent
    )
    return _UNSAFE_IN_JSON.sub(_escape_in_json, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _escape_in_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
