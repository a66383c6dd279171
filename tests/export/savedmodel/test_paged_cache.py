"""Pages of a cache against the wire's rows, and attention to them against numpy."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel import graph_jax, packed_cache_tf, paged_cache
from optserve.runtime.contract import CacheLayout

LAYOUT = CacheLayout(layers=3, heads=2, head_dim=8)
B, C, SLOTS, PAGES = 2, 11, 4, 6
LENGTH = np.array([9, 3], np.int32)


@pytest.fixture(scope="module")
def wire() -> np.ndarray:
    """Rows of the wire, NaN after what is used."""
    rows = np.random.default_rng(0).standard_normal((B, C, *LAYOUT.row_shape))
    for row, length in zip(rows, LENGTH, strict=True):
        row[length:] = np.nan
    return rows.astype(np.float32)


def paged(*parts, dtype: str = "float32"):
    pages = paged_cache.empty(LAYOUT, B, pages=PAGES, slots=SLOTS)
    for rows, length in parts:
        pages = paged_cache.append(pages, tf.constant(rows), length, dtype)
    return pages


def test_pages_hold_the_rows_in_use(wire):
    pages = paged((wire, LENGTH))
    assert int(pages.used) == 3
    assert pages.filled.numpy()[:3].T.tolist() == [[4, 4, 1], [3, 0, 0]]
    for b, length in enumerate(LENGTH):
        for slot in range(length):
            page = pages.kv[slot // SLOTS, :, :, b, :, slot % SLOTS]
            np.testing.assert_array_equal(page, wire[b, slot])


def test_more_rows_go_to_pages_of_their_own(wire):
    more = np.ones((B, 2, *LAYOUT.row_shape), np.float32)
    pages = paged((wire, LENGTH), (more, np.array([2, 1], np.int32)))
    assert int(pages.used) == 4
    assert pages.filled.numpy()[3].tolist() == [2, 1]
    np.testing.assert_array_equal(pages.kv[3, :, :, :, :, :2], 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_numbers_are_unpacked(dtype):
    rows = np.random.default_rng(1).standard_normal((B, C, *LAYOUT.row_shape))
    packed = packed_cache_tf.pack(tf.constant(rows.astype(np.float32)), dtype)
    pages = paged((packed, np.full(B, C, np.int32)), dtype=dtype)
    unpacked = packed_cache_tf.unpack(packed, dtype)
    np.testing.assert_array_equal(pages.kv[1, :, :, 1, :, 2], unpacked[1, SLOTS + 2])


def test_no_cache_uses_no_page():
    nothing = np.zeros((B, 0, *LAYOUT.row_shape), np.float32)
    assert int(paged((nothing, np.zeros(B, np.int32))).used) == 0


@pytest.mark.parametrize("new", [0, 2])
@pytest.mark.parametrize("S", [1, 3])
def test_attention_equals_numpys(wire, S, new):
    """To pages, to some of the rows made before, and causally to one another."""
    H, D = LAYOUT.heads, LAYOUT.head_dim
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((3, B, H, S, D)).astype(np.float32)
    new_kv = rng.standard_normal((LAYOUT.layers, 2, B, H, 5, D)).astype(np.float32)
    pages = graph_jax.Pages(*(x.numpy() for x in paged((wire, LENGTH))))
    for layer in range(LAYOUT.layers):
        past = graph_jax.Past(pages, new_kv if new else None, new, layer)
        actual = jax.jit(graph_jax.attend)(q, (k, past), v)
        for b in range(B):
            old = wire[b, : LENGTH[b], layer].transpose(1, 2, 0, 3)
            before = new_kv[layer, :, b, :, :new]
            for s in range(S):
                own = np.stack([k, v])[:, b, :, : s + 1]
                keys, values = np.concatenate([old, before, own], axis=2)
                exact = attention(q[b, :, s], keys, values)
                np.testing.assert_allclose(actual[b, :, s], exact, atol=1e-5)


def attention(q, keys, values):
    scores = np.einsum("hd,htd->ht", q, keys)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ht,htd->hd", weights, values)
