"""Ids and texts of Transformers' tokenizer, recorded by ``make_tokenizer_ids.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from optserve.models.tokenizer import Detokenizer, Tokenizer

DATA = Path(__file__).parents[1] / "data"
ENTRIES = json.loads((DATA / "tokenizer_ids.json").read_text())


@pytest.fixture(scope="module", params=["vocabulary", "json"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    """From ``vocab.json`` and ``merges.txt``, and from the JSON made of those."""
    whole = Tokenizer.from_directory(DATA / "opt-tokenizer")
    if request.param == "vocabulary":
        return whole
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "tokenizer.json").write_text(whole.to_json(), encoding="utf-8")
    return Tokenizer.from_directory(directory)


def test_ids_are_the_reference_ones(tokenizer):
    assert len(ENTRIES) > 300
    wrong = [e["text"] for e in ENTRIES if tokenizer.encode(e["text"]) != e["ids"]]
    assert not wrong


def test_a_batch_holds_the_same_ids(tokenizer):
    texts = [entry["text"] for entry in ENTRIES]
    ids, mask = tokenizer.encode_batch(texts, padding_side="left")
    for row, kept, entry in zip(ids, mask, ENTRIES, strict=True):
        assert row[kept == 1].tolist() == entry["ids"]


def test_texts_are_the_reference_ones(tokenizer):
    for entry in ENTRIES:
        ids = entry["ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == entry["kept"]
        assert tokenizer.decode(ids) == entry["skipped"]


def test_streamed_texts_are_the_reference_ones(tokenizer):
    for entry in ENTRIES:
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.add([token]) for token in entry["ids"]]
        assert "".join(pieces) + detokenizer.finish() == entry["skipped"]
