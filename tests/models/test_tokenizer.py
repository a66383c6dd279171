"""The tokenizer with OPT's real vocabulary: padding, decoding by pieces, errors."""

from __future__ import annotations

import copy
import functools
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from optserve.models.tokenizer import Detokenizer, Tokenizer, TokenizerError

REAL = Path(__file__).parents[1] / "data" / "opt-tokenizer"
SHARED = Tokenizer.from_directory(REAL)
SMALL = b'{"a": 0, "</s>": 1, "<pad>": 2}'


def test_special_ids():
    assert (SHARED.bos_token_id, SHARED.eos_token_id, SHARED.pad_token_id) == (2, 2, 1)
    assert SHARED.vocab_size == 50265
    assert SHARED.special_token_ids == {1, 2}


def test_end_token_comes_first_even_in_an_empty_prompt():
    assert SHARED.encode("") == [2]
    assert SHARED.encode("Hello, my dog") == [2, 31414, 6, 127, 2335]
    assert SHARED.encode("Hello", add_special_tokens=False) == [31414]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_on_the_side_asked_for(side):
    ids, mask = SHARED.encode_batch(["a", "b c d"], padding_side=side)
    assert ids.dtype == mask.dtype == np.int32
    short, padding = SHARED.encode("a"), [1, 1]
    row = padding + short if side == "left" else short + padding
    assert ids.tolist() == [row, SHARED.encode("b c d")]
    assert mask.tolist() == [(ids[0] != 1).tolist(), [1] * 4]


def test_an_empty_batch_is_empty():
    ids, mask = SHARED.encode_batch([])
    assert ids.shape == mask.shape == (0, 0)


def test_json_round_trip_keeps_everything():
    again = Tokenizer.from_json(SHARED.to_json().encode())
    text = "Good morrow</s> to you 😀"
    assert again.encode(text) == SHARED.encode(text)
    assert again.to_json() == SHARED.to_json()


def test_tokenizer_json_is_preferred_and_gets_the_end_token(tmp_path: Path):
    document = small() | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.from_directory(tmp_path).encode("a") == [2, 4]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert Tokenizer.from_directory(tmp_path).encode("a") == [4]


@given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(text):
    ids = SHARED.encode(text)
    assert SHARED.decode(ids[1:], skip_special_tokens=False) == text


@given(st.lists(st.integers(0, 50271), max_size=60), st.booleans())
def test_pieces_join_to_the_whole_and_never_hold_half_a_character(ids, skip):
    detokenizer = Detokenizer(SHARED, skip_special_tokens=skip)
    pieces = [detokenizer.add([i]) for i in ids] + [detokenizer.finish()]
    assert "".join(pieces) == SHARED.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=40))
def test_streaming_real_text_shows_no_replacement_character(text):
    text = text.replace("\ufffd", "")
    detokenizer = Detokenizer(SHARED)
    pieces = [detokenizer.add([i]) for i in SHARED.encode(text)]
    assert "".join(pieces) == text.replace("</s>", "").replace("<pad>", "")
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_held_back_then_replaced():
    first, *_ = SHARED.encode("😀", add_special_tokens=False)
    detokenizer = Detokenizer(SHARED)
    assert detokenizer.add([first]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_ids_beyond_the_vocabulary_have_no_text():
    assert SHARED.decode([50270, 31414, -1]) == "Hello"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({}, "neither tokenizer.json nor"),
        ({"tokenizer.json": b"{}"}, "not usable"),
        ({"tokenizer.json": b"\xff"}, "UTF-8"),
        ({"vocab.json": b"{}", "merges.txt": b""}, "no </s>"),
        ({"vocab.json": b"[1]", "merges.txt": b""}, "JSON object"),
        (
            {"vocab.json": b'{"</s>": "b", "<pad>": 0}', "merges.txt": b""},
            "not usable: .*invalid type",
        ),
        ({"vocab.json": b"[" * 100000, "merges.txt": b""}, "not valid JSON"),
        ({"vocab.json": SMALL, "merges.txt": b"a b c"}, "not a pair"),
        (
            {"vocab.json": SMALL, "merges.txt": b"a b"},
            "`b` out of vocabulary",
        ),
        (
            {"vocab.json": SMALL, "merges.txt": b"a a"},
            "`aa` out of vocabulary",
        ),
    ],
)
def test_broken_files_are_named(tmp_path: Path, files: dict[str, bytes], fault: str):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=fault):
        Tokenizer.from_directory(tmp_path)


def test_a_json_that_cannot_encode_is_refused():
    document, wrong = copy.deepcopy(small()), copy.deepcopy(small())
    wrong["post_processor"]["special_tokens"] = {}
    with pytest.raises(TokenizerError):
        Tokenizer.from_json(json.dumps(wrong))
    document["model"]["vocab"]["</s>"] = 2**31
    with pytest.raises(TokenizerError, match="31 bits"):
        Tokenizer.from_json(json.dumps(document))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(TokenizerError, match="surrogate"):
        SHARED.encode("a\ud800")


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


@functools.cache
def small() -> dict[str, Any]:
    """A document with a vocabulary without most bytes, and merges that compete."""
    shared = json.loads(SHARED.to_json())
    letters = ["a", "b", "c", "Ġ", "ab", "bc", "abc"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    model = {"vocab": {token: i for i, token in enumerate(tokens)}}
    model |= {"merges": ["b c", "a b", "a bc"]}
    return shared | {"model": shared["model"] | model}


@given(st.sampled_from(PLACES), JSON)
def test_a_damaged_document_is_refused_or_works(path, value):
    document = copy.deepcopy(small())
    *parents, last = path
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    try:
        tokenizer = Tokenizer.from_json(json.dumps(document))
        ids = tokenizer.encode("abc")
    except TokenizerError:
        return
    assert tokenizer.decode(ids) is not None


PANICKING = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
LIBRARY_FAULTS = {
    "a panic of the library": {"normalizer": PANICKING},
    "a nested list": {"normalizer": json.loads("[" * 500 + "]" * 500)},
    "a pattern that is none": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "("},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a decoder for other tokens": {"decoder": {"type": "WordPiece"}},
}


@pytest.mark.parametrize("fault", LIBRARY_FAULTS)
def test_whatever_the_library_raises_is_our_error(fault):
    document = small() | LIBRARY_FAULTS[fault]
    with pytest.raises(TokenizerError):
        Tokenizer.from_json(json.dumps(document)).encode("abc")


def test_a_panic_at_the_text_is_our_error(monkeypatch):
    class PanicException(BaseException):
        """As pyo3 has it."""

    class Core:
        def encode(self, text, add_special_tokens=True):
            raise PanicException("called `Option::unwrap()` on a `None` value")

    tokenizer = Tokenizer.from_json(json.dumps(small()))
    monkeypatch.setattr(tokenizer, "_core", Core())
    with pytest.raises(TokenizerError, match="can't encode this text: called"):
        tokenizer.encode("abc")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_a_huge_file_is_refused_before_it_is_parsed(monkeypatch, tmp_path):
    monkeypatch.setattr("optserve.models.tokenizer.MAX_FILE", 1000)
    (tmp_path / "tokenizer.json").write_bytes(b"[" * 1001)
    with pytest.raises(TokenizerError, match="more than 1000 bytes"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(TokenizerError, match="more than 1000 bytes"):
        Tokenizer.from_json(b"[" * 1001)


def test_a_long_text_is_read_as_a_short_one_and_others_run_meanwhile():
    text = "O, she doth teach the torches to burn bright!\n" * 6000
    expected = tokenizers.Tokenizer.from_str(SHARED.to_json()).encode(text).ids
    ended: list[list[int]] = []
    thread = threading.Thread(target=lambda: ended.append(SHARED.encode(text)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert ended == [expected]
    assert turns > 5
