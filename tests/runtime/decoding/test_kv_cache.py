"""A row's cache and the pieces it travels in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optserve.runtime.codec import RowBlocks
from optserve.runtime.contract import CacheLayout
from optserve.runtime.decoding.kv_cache import KVCache
from optserve.runtime.errors import MalformedReply

LAYOUT = CacheLayout(layers=2, heads=1, head_dim=2)


def rows(count: int, start: int) -> np.ndarray:
    values = np.arange(start, start + count, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None, None], (count, 2, 2, 1, 2))


def content(cache: KVCache) -> list[float]:
    return np.concatenate(cache.blocks())[:, 0, 0, 0, 0].tolist()


@given(st.lists(st.tuples(st.sampled_from("aftk"), st.integers(0, 90)), max_size=25))
def test_forks_never_disturb_each_other(steps):
    caches = [(KVCache(LAYOUT), [])]
    for number, (step, size) in enumerate(steps):
        cache, expected = caches[size % len(caches)]
        if step == "a":
            cache.append(rows(size, 100 * number))
            expected += [float(100 * number + i) for i in range(size)]
        elif step == "f":
            caches.append((cache.fork(), expected.copy()))
        elif step == "t":
            cache.truncate(size)
            del expected[size:]
    for cache, expected in caches:
        assert len(cache) == len(expected)
        assert content(cache) == expected
        half = len(expected) // 2
        copied = cache.rows(half, len(expected))[:, 0, 0, 0, 0]
        assert copied.tolist() == expected[half:]


def test_forks_share_the_prompt():
    cache = KVCache(LAYOUT)
    cache.append(rows(50, 0))
    others = [cache.fork() for _ in range(3)]
    assert all(np.shares_memory(o.blocks()[0], cache.blocks()[0]) for o in others)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 2, 2, 1, 3), np.float32), np.zeros((1, 2, 2, 1, 2))]
)
def test_rows_of_another_layout_are_refused(wrong):
    with pytest.raises(MalformedReply, match="float32"):
        KVCache(LAYOUT).append(wrong)


def test_blocks_are_an_array_with_zeros_after_them():
    first, second = KVCache(LAYOUT), KVCache(LAYOUT)
    first.append(rows(3, 1))
    blocks = RowBlocks((first.blocks(), second.blocks()), 5)
    array = np.asarray(blocks)
    assert array.shape == blocks.shape == (2, 5, 2, 2, 1, 2)
    assert array.nbytes == blocks.nbytes and array.ndim == blocks.ndim
    assert array[0, :, 0, 0, 0, 0].tolist() == [1, 2, 3, 0, 0]
    assert not array[1].any()
    memory = b"".join(
        bytes(piece) if isinstance(piece, int) else piece.tobytes()
        for piece in blocks.memory()
    )
    assert memory == array.tobytes()
