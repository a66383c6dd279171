"""Manifests are checked as data before anyone computes with them."""

from __future__ import annotations

import json

import pytest
from optserve.runtime.contract import MANIFEST_LIMIT, CacheLayout, Manifest

from tests.runtime.contract.manifests import FIELDS, manifest


def test_json_there_and_back():
    whole = manifest(
        generate=[1, 8],
        sessions={"slots": 16, "positions": 1024},
        files={"saved_model.pb": "a" * 64},
        tool_versions={"jax": "1.0"},
    )
    assert Manifest.from_json(whole.to_json()) == whole
    later = {**json.loads(whole.to_json()), "added_later": [1]}
    assert Manifest.from_json(json.dumps(later)) == whole


def test_the_cache_layout_follows_from_the_configuration():
    assert manifest().cache_layout == CacheLayout(layers=2, heads=2, head_dim=4)


def deep(levels: int) -> dict:
    nested: dict = {}
    for _ in range(levels):
        nested = {"x": nested}
    return nested


CONFIG = FIELDS["config"]
HOSTILE = {
    "rows beyond measure": {"batch_sizes": [1, 4097]},
    "a width as text": {"config": {**CONFIG, "word_embed_proj_dim": "nan"}},
    "no width": {"config": {**CONFIG, "word_embed_proj_dim": 0}},
    "a width as list": {"config": {**CONFIG, "word_embed_proj_dim": [[]]}},
    "tokens below zero": {"max_tokens_per_call": -1},
    "tokens that are true": {"max_tokens_per_call": True},
    "tokens that are false": {"max_tokens_per_call": False},
    "tokens beyond int32": {"max_tokens_per_call": 2**31},
    "a number as text": {"max_positions": "2048"},
    "a fraction": {"vocab_size": 50272.5},
    "infinity": {"max_positions": float("inf")},
    "true for a number": {"vocab_size": True},
    "zero": {"max_positions": 0},
    "negative": {"vocab_size": -1},
    "beyond int32": {"max_positions": 2**31},
    "null": {"vocab_size": None},
    "a token id as text": {"eos_token_id": "2"},
    "a token id beyond int32": {"pad_token_id": 2**40},
    "sizes as text": {"generate": "1,8"},
    "sizes descending": {"cache_buckets": [8, 4]},
    "a size twice": {"batch_sizes": [8, 8]},
    "a size that is a list": {"prompt_buckets": [[8]]},
    "a size of zero": {"compiled_prompts": [0, 8]},
    "millions of sizes": {"compiled_prompts": list(range(1, 200_000))},
    "signatures as an object": {"signatures": {"decode": 1}},
    "an escape in a signature": {"signatures": ["decode\x1b[2J"]},
    "an escape in the framework": {"framework": "\x1b]0;owned\x07"},
    "a text direction mark": {"compiler": "none\u202e"},
    "an unknown cache": {"cache_dtype": "float64"},
    "a list as the configuration": {"config": []},
    "no layers": {"config": {**CONFIG, "num_hidden_layers": 0}},
    "no head count": {"config": {"num_hidden_layers": 2, "hidden_size": 8}},
    "heads as text": {"config": {**CONFIG, "num_attention_heads": "2"}},
    "heads that do not divide": {"config": {**CONFIG, "num_attention_heads": 3}},
    "a deep configuration": {"config": {**CONFIG, "x": deep(100)}},
    "deep options": {"export_options": deep(100)},
    "files as a list": {"files": ["saved_model.pb"]},
    "a file outside": {"files": {"../../secret": "0" * 64}},
    "an absolute file": {"files": {"/etc/passwd": "0" * 64}},
    "an empty path": {"files": {"": "0" * 64}},
    "an escape in a path": {"files": {"a\x1b[31m": "0" * 64}},
    "a zero byte in a path": {"files": {"a\0b": "0" * 64}},
    "a digest that is none": {"files": {"a": "../../x"}},
    "a digest as a number": {"files": {"a": 7}},
    "a checkpoint's digest": {"checkpoint_digest": "\x1b[31m"},
    "a tool's version": {"tool_versions": {"tensorflow": ["2"]}},
    "a tool's name": {"tool_versions": {"\x1b[31m": "2"}},
    "slots of sessions as text": {"sessions": {"slots": "16", "positions": 8}},
    "sessions without positions": {"sessions": {"slots": 16}},
    "sessions of something": {"sessions": {"slots": 1, "positions": 8, "x": 1}},
    "sessions as a list": {"sessions": [16, 1024]},
    "a flag as text": {"tokenizer": "yes"},
    "a contract version as text": {"contract_version": "1"},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_values_are_refused_in_a_printable_sentence(changes):
    with pytest.raises(ValueError, match=r"the (manifest.s|cache dtype)") as refused:
        Manifest(**{**FIELDS, **changes})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "lacks a key"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"vocab_size": NaN}', "not JSON"),
        (b'{"vocab_size": -Infinity}', "not JSON"),
        (b'{"vocab_size": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b" " * (MANIFEST_LIMIT + 1), "at most"),
    ],
)
def test_texts_that_are_no_manifest(text, words):
    with pytest.raises(ValueError, match=words) as refused:
        Manifest.from_json(text)
    assert str(refused.value).isprintable()
