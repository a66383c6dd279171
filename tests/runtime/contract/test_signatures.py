"""The contract's table: sizes go where the letters stand."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.runtime.contract import (
    CACHE_DTYPES,
    CacheLayout,
    generate_name,
    session_names,
    session_tokens_per_call,
    signature,
    tokens_per_call,
)

LAYOUT = CacheLayout(layers=2, heads=3, head_dim=8)


def shapes(name: str, **sizes: int) -> dict[str, tuple]:
    spec = signature(name, LAYOUT, **sizes)
    return {t.name: t.shape for t in (*spec.inputs, *spec.outputs)}


def test_decode_as_the_design_has_it():
    assert shapes("decode") == {
        "input_ids": ("B", "S"),
        "input_length": ("B",),
        "cache": ("B", "C", 2, 2, 3, 8),
        "cache_length": ("B",),
        "logits": ("B", "V"),
        "new_cache": ("B", "S", 2, 2, 3, 8),
    }
    assert shapes("decode", vocab_size=7)["logits"] == ("B", 7)
    assert shapes("embed", hidden_size=5)["last_hidden_state"] == ("B", "S", 5)


def test_generate_as_the_design_has_it():
    actual = shapes("generate_16")
    assert list(actual)[4:12] == [
        "max_new_tokens",
        "history",
        "stop_ids",
        "seed",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
    ]
    assert actual["seed"] == ("B", 2)
    assert actual["tokens"] == actual["logprobs"] == ("B", 16)
    assert actual["new_cache"] == ("B", "S+N-1", 2, 2, 3, 8)


def test_rows_are_axis_0_of_every_tensor():
    names = ["serving_default", "prefill", "decode", generate_name(8), "score"]
    for name in (*names, "embed", "describe", "tokenizer"):
        assert all(shape[0] == "B" for shape in shapes(name).values()), name


@pytest.mark.parametrize("name", ["", "generate", "generate_0", "generate_{N}", "row"])
def test_other_names_are_no_signature(name):
    with pytest.raises(KeyError):
        signature(name, LAYOUT)
    assert tokens_per_call(name) is None


def test_tokens_per_call():
    assert tokens_per_call(generate_name(32)) == 32
    assert tokens_per_call("generate_" + "9" * 5000) is None


def test_strings_travel_as_objects():
    (manifest,) = signature("describe", LAYOUT).outputs
    assert manifest.numpy_dtype() == np.dtype(object)


@pytest.mark.parametrize(
    ("dtype", "width"), [("float32", 8), ("bfloat16", 4), ("int8", 3)]
)
def test_a_cache_row(dtype, width):
    layout = CacheLayout(layers=2, heads=3, head_dim=8, dtype=dtype)
    assert layout.row_shape == (2, 2, 3, width)
    assert layout.row_bytes == 2 * 2 * 3 * width * 4


def test_a_cache_that_cannot_be():
    assert CACHE_DTYPES == ("float32", "bfloat16", "int8")
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8"):
        CacheLayout(1, 1, 8, "float64")
    with pytest.raises(ValueError, match="divisible by 4"):
        CacheLayout(1, 1, 6, "int8")


def test_sessions_as_the_design_has_them():
    explicit, in_slot = shapes("generate_16"), shapes("session_generate_16")
    assert explicit.keys() - in_slot.keys() == {"cache", "new_cache"}
    assert in_slot.keys() - explicit.keys() == {"slot", "ticket", "alive"}
    assert "cache_length" in in_slot
    assert list(shapes("session_decode"))[-2:] == ["logits", "alive"]
    slot, ticket = signature("session_open", LAYOUT).outputs
    assert (slot.dtype, ticket.dtype) == ("int32", "int64")
    row = ("B", "C", 2, 2, 3, 8)
    assert shapes("session_write")["cache"] == shapes("session_read")["cache"] == row


def test_names_of_sessions():
    assert session_names([8]) == [
        "session_open",
        "session_decode",
        "session_write",
        "session_read",
        "session_copy",
        "session_generate_8",
    ]
    assert session_tokens_per_call("session_generate_8") == 8
    assert tokens_per_call("session_generate_8") is None
    for name in ("generate_8", "session_open", "session_session_generate_8", ""):
        assert session_tokens_per_call(name) is None
    for name in session_names([8]):
        assert all(shape[0] == "B" for shape in shapes(name).values()), name
