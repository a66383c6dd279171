"""Prompts as text read from files, and texts printed on a terminal."""

from __future__ import annotations

import sys
from typing import IO

from ..errors import InvalidRequest
from ..printable import printable

_LONGEST_PROMPT = 64 << 20  # bytes of text


def say(text: str, *, end: str = "") -> None:
    """Print a text that a model generated; on a terminal its escapes don't act."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


def read_prompt(file: IO[bytes], source: str) -> str:
    """A prompt's text from a file that may never end.

    Raises:
        InvalidRequest: it is not UTF-8, or has no end; ``source`` says whose it is.
    """
    data = file.read(_LONGEST_PROMPT + 1)
    if len(data) > _LONGEST_PROMPT:
        raise InvalidRequest(f"{source} has more than {_LONGEST_PROMPT} bytes")
    return utf8(data, source)


def utf8(data: bytes, source: str) -> str:
    """The text of a prompt, its line breaks as ``\\n``.

    Raises:
        InvalidRequest: it is not UTF-8; ``source`` says where it came from.
    """
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{source} is not UTF-8 text (byte {error.start + 1}): convert it first"
        ) from None
