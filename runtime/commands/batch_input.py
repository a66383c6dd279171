"""The prompts of a batch: JSON lines, of which a bad one fails alone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from ..errors import InvalidRequest

_LONGEST_LINE = 64 << 20
_DEEPEST = 100  # levels of a line's other fields


@dataclass
class Item:
    """One prompt of a batch; ``rest`` are its line's other fields, passed on."""

    id: str | int
    prompt: Any = None
    error: str = ""
    rest: dict[str, Any] = field(default_factory=dict)


@contextmanager
def opened_input(path: str) -> Iterator[IO[bytes]]:
    """A JSONL file, ``-`` for standard input.

    Raises:
        OSError: the file can't be read.
    """
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
        yield file


def read_items(file: IO[bytes]) -> Iterator[Item]:
    """An item for each line that isn't empty; an id defaults to the line's number.

    Raises:
        InvalidRequest: a line has no end, as far as anyone reads.
    """
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            raise InvalidRequest(
                f"line {number} of the batch has more than {_LONGEST_LINE} bytes: "
                "give a file of JSON lines"
            )
        if line.strip():
            yield _item(line, number)


def _item(line: bytes, number: int) -> Item:
    try:
        record = json.loads(line, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        return Item(number, error=f"line {number} is nested too deeply")
    except ValueError as error:
        return Item(number, error=f"line {number} is not JSON: {error}")
    if isinstance(record, str):
        return Item(number, record)
    if not isinstance(record, dict) or "prompt" not in record:
        return Item(number, error=f'line {number} is not an object with a "prompt"')
    identity = record.pop("id", number)
    prompt = record.pop("prompt")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        return Item(number, error=f"line {number}: an id is a text or a whole number")
    if not isinstance(prompt, str | list):
        text = f"line {number}: a prompt is a text or a list of token ids"
        return Item(identity, error=text, rest=record)
    if _deeper_than(_DEEPEST, record):
        return Item(identity, error=f"line {number} is nested too deeply")
    return Item(identity, prompt, rest=record)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    """A number that can be written again: JSON has none for what 1e999 becomes."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _deeper_than(levels: int, value: Any) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_deeper_than(levels - 1, item) for item in inner)
