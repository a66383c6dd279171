"""What is printed can't rewrite a terminal, and JSON stays JSON."""

from __future__ import annotations

import json
import unicodedata

import pytest
from optserve.runtime.printable import json_text, printable, sentence

HOSTILE = "\x1b[2J\x9b31m\u202egnp.exe\u2066\u200f\x00\ud800\x7f\r"


def dangerous(text: str) -> list[str]:
    """By Unicode's own tables: controls, directional formatting, half characters."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return [
        c
        for c in text
        if unicodedata.bidirectional(c) in bidi
        or unicodedata.category(c) == "Cs"
        or (unicodedata.category(c) == "Cc" and c not in "\n\t")
    ]


def test_everything_dangerous_is_escaped_and_nothing_else():
    every = "".join(map(chr, range(0x3000)))
    assert dangerous(every) and not dangerous(printable(every))
    assert printable("two\nlines\tand Ünïcode 日本") == "two\nlines\tand Ünïcode 日本"
    assert printable("\x1b[2J\u202e") == "\\x1b[2J\\u202e"


def test_a_sentence_is_one_line():
    assert sentence("a\n b\r\n\x1b]0;title\x07") == "a b \\x1b]0;title\\x07"


@pytest.mark.parametrize("indent", [None, 1])
def test_json_stays_json_and_means_the_same(indent):
    value = {"key " + HOSTILE: [HOSTILE, 1.5, None, True]}
    text = json_text(value, indent=indent)
    assert not dangerous(text)
    assert json.loads(text) == value


def test_numbers_that_json_lacks_become_null():
    value = {"a": float("nan"), "b": [float("inf"), (-float("inf"), 2.0)]}

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(json_text(value), parse_constant=refuse)
    assert read == {"a": None, "b": [None, [None, 2.0]]}
