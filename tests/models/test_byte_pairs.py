"""Our byte-level BPE against the ``tokenizers`` package: words, ids, odd pipelines."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from optserve.models.byte_pairs import BytePairs, OtherPipeline, word_pattern
from optserve.models.tokenizer import Tokenizer, TokenizerError

DATA = Path(__file__).parents[1] / "data"
DOCUMENT = json.loads(Tokenizer.from_directory(DATA / "opt-tokenizer").to_json())
OURS = BytePairs(DOCUMENT)
THEIRS = tokenizers.Tokenizer.from_str(json.dumps(DOCUMENT))
SPLITTER = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

# Characters that this Python's Unicode knows: the package's may be newer.
KNOWN = st.characters(exclude_categories=("Cs", "Cn"))
LIKELY = st.sampled_from(
    [*" \n\t'_09azAZ.,!éß½²٣一豈ʰ\u00a0\u2003\u1680\x1c\x85\u200d😀", "</s>", "<pad>"]
)
TEXT = st.lists(st.one_of(KNOWN, LIKELY), max_size=60).map("".join)


def package_ids(text: str, document: dict[str, Any] | None = None) -> list[int]:
    if document is None:
        return THEIRS.encode(text).ids
    return tokenizers.Tokenizer.from_str(json.dumps(document)).encode(text).ids


@given(TEXT)
def test_any_text_has_the_ids_of_the_package(text):
    assert OURS.encode(text, add_special_tokens=True) == package_ids(text)


@given(TEXT)
def test_words_are_cut_where_the_package_cuts(text):
    spans = [span for _, span in SPLITTER.pre_tokenize_str(text)]
    assert [m.span() for m in word_pattern().finditer(text)] == spans


def test_every_character_is_of_the_same_class():
    known = [c for c in map(chr, range(0x110000)) if _known(c)]
    for around in ("a{}a", "1{}1", "!{}!", " {} "):
        for start in range(0, len(known), 20000):
            # Line breaks keep the samples apart, and each has its place.
            samples = [around.format(c) for c in known[start : start + 20000]]
            text = "\n".join(samples)
            spans = [span for _, span in SPLITTER.pre_tokenize_str(text)]
            assert [m.span() for m in word_pattern().finditer(text)] == spans


def _known(character: str) -> bool:
    return unicodedata.category(character) not in ("Cs", "Cn")


def test_a_whole_book_has_the_ids_of_the_package():
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert OURS.encode(text, add_special_tokens=True) == package_ids(text)


def test_long_words_take_no_square_of_their_length():
    word = "abcdefghij" * 20_000
    start = time.process_time()
    ids = OURS.encode(word, add_special_tokens=True)
    assert time.process_time() - start < 10
    assert ids == package_ids(word)


def small(**changes: Any) -> dict[str, Any]:
    """A vocabulary without most bytes, merges that compete, and tokens added."""
    model = DOCUMENT["model"] | {"vocab": {}, "merges": []}
    document = copy.deepcopy(DOCUMENT | {"model": model})
    letters = ["a", "b", "c", "Ġ", "ab", "bc", "abc", "ca", "cab", "aa", "aaa"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    merges = ["b c", "a b", "a bc", "ab c", "c a", "c ab", "a a", "aa a"]
    document["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    document["model"]["merges"] = merges
    return document | changes


@given(st.lists(st.sampled_from([*"abcd é", "</s>"]), max_size=30).map("".join))
def test_competing_merges_and_missing_bytes_are_treated_alike(text):
    document = small()
    ids = BytePairs(document).encode(text, add_special_tokens=True)
    assert ids == package_ids(text, document)


def added(i: int, content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": False, **flags}


@given(st.lists(st.sampled_from(["<x", "<xy>", ">", "a", " "]), max_size=12))
def test_the_longest_added_token_is_taken(parts):
    document = small()
    document["added_tokens"] += [added(15, "<x"), added(16, "<xy>", special=True)]
    pairs = BytePairs(document)
    text = "".join(parts)
    assert pairs.encode(text, add_special_tokens=True) == package_ids(text, document)
    assert pairs.special == {1, 2, 16}


def _set(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = path_and_value

    def change(document: dict[str, Any]) -> None:
        for key in path:
            document = document[key]
        document[last] = value

    return change


DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    ],
}
SUFFIX = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]} | {
    "trim_offsets": True,
    "add_prefix_space": False,
}
OTHERS = {
    "normalizer": _set("normalizer", {"type": "NFC"}),
    "digits": _set("pre_tokenizer", DIGITS),
    "prefix space": _set("pre_tokenizer", "add_prefix_space", True),
    "no pattern": _set("pre_tokenizer", "use_regex", False),
    "ends": _set("post_processor", ROBERTA),
    "twice": _set("post_processor", "single", SUFFIX),
    "unknown": _set("model", "unk_token", "<unk>"),
    "ignore merges": _set("model", "ignore_merges", True),
    "suffix": _set("model", "end_of_word_suffix", "</w>"),
    "strips": _set("added_tokens", 0, "lstrip", True),
    "whole word": _set("added_tokens", 0, "single_word", True),
    "two steps": _set("added_tokens", 0, "normalized", True),
    "odd id": _set("added_tokens", 0, "id", 40),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines_run_in_the_package(name):
    document = small()
    OTHERS[name](document)
    with pytest.raises(OtherPipeline):
        BytePairs(document)
    text = "abc a12c b</s>  <pad> cab"
    assert Tokenizer.from_json(json.dumps(document)).encode(text) == package_ids(
        text, document
    )


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = [
    *(("added_tokens",), ("added_tokens", 0), ("added_tokens", 0, "content")),
    *(("pre_tokenizer",), ("post_processor",), ("post_processor", "single")),
    *(("post_processor", "special_tokens"), ("post_processor", "single", 0)),
    *(("post_processor", "special_tokens", "</s>", "ids"), ("decoder",), ("model",)),
    *(("model", "vocab"), ("model", "vocab", "a"), ("model", "merges")),
    *(("model", "merges", 0), ("normalizer",), ("added_tokens", 0, "id")),
]


@given(st.sampled_from(PLACES), JSON)
def test_a_damaged_document_is_refused_or_works(path, value):
    document = small()
    _set(*path, value)(document)
    try:
        tokenizer = Tokenizer.from_json(json.dumps(document))
    except TokenizerError:
        return
    assert tokenizer.decode(tokenizer.encode("abc")) is not None


WITHOUT = """
import sys
sys.modules["tokenizers"] = None
from optserve.models.tokenizer import Tokenizer, TokenizerError
print(Tokenizer.from_directory(sys.argv[1]).encode("Hello, my dog"))
try:
    Tokenizer.from_json(sys.stdin.read())
except TokenizerError as error:
    print(error)
"""


def test_without_the_package_only_other_pipelines_are_refused():
    command = [sys.executable, "-c", WITHOUT, str(DATA / "opt-tokenizer")]
    text = json.dumps(small(normalizer={"type": "NFC"}))
    run = subprocess.run(command, input=text, capture_output=True, text=True)
    ids, refusal = run.stdout.splitlines()
    assert ids == "[2, 31414, 6, 127, 2335]"
    assert refusal == (
        "this tokenizer is not OPT's (it normalizes text) and needs the tokenizers "
        "package: pip install 'optserve[tokenizers]'"
    )
