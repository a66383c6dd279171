"""The tokenizer with OPT's real vocabulary: padding, decoding by pieces, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
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
    document = json.loads(SHARED.to_json())
    document["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert Tokenizer.from_directory(tmp_path).encode("a") == SHARED.encode("a")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert Tokenizer.from_directory(tmp_path).encode("a") == SHARED.encode("a")[1:]


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
            "map tokens to ids",
        ),
        ({"vocab.json": b"[" * 100000, "merges.txt": b""}, "not valid JSON"),
        ({"vocab.json": SMALL, "merges.txt": b"a b c"}, "not a pair"),
        ({"vocab.json": SMALL, "merges.txt": b"a b"}, "merge 0 needs 'ab'"),
        ({"vocab.json": SMALL, "merges.txt": b"a a"}, "merge 0 needs 'aa'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, files: dict[str, bytes], fault: str):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=fault):
        Tokenizer.from_directory(tmp_path)


def test_a_json_that_cannot_encode_is_refused():
    document = json.loads(SHARED.to_json())
    wrong = json.loads(json.dumps(document))
    wrong["post_processor"]["special_tokens"] = {}
    with pytest.raises(TokenizerError):
        Tokenizer.from_json(json.dumps(wrong))
    document["model"]["vocab"]["</s>"] = 2**31
    with pytest.raises(TokenizerError, match="31 bits"):
        Tokenizer.from_json(json.dumps(document))


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(TokenizerError, match="surrogate"):
        SHARED.encode("a\ud800")
