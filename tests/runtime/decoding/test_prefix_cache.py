"""Blocks of cache rows: told by their tokens, bounded, dropped from the end on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime.decoding.prefix_cache import (
    BLOCK,
    PrefixCache,
    as_prefix_cache,
    block_hashes,
)
from optserve.runtime.errors import InvalidRequest

ROW = 8  # bytes of a block in these tests


def rows(value: int) -> np.ndarray:
    return np.array([value, value], np.float32)


def blocks(tokens: list[int], identity: str = "model") -> dict[bytes, np.ndarray]:
    hashes = block_hashes(identity, tokens)
    return {one: rows(i) for i, one in enumerate(hashes)}


@given(st.lists(st.integers(0, 2**31 - 1), max_size=70), st.integers(0, 69))
def test_equal_hashes_mean_equal_tokens_from_the_first_on(tokens, place):
    whole = block_hashes("model", tokens)
    assert len(whole) == len(tokens) // BLOCK
    assert block_hashes("model", tokens[: 2 * BLOCK]) == whole[:2]
    assert not set(block_hashes("another", tokens)) & set(whole)
    if place < len(tokens):
        changed = tokens.copy()
        changed[place] ^= 1
        same = place // BLOCK
        other = block_hashes("model", changed)
        assert other[:same] == whole[:same]
        assert not set(other[same:]) & set(whole)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30),
    st.integers(1, 9),
)
def test_never_more_than_the_limit_and_never_wrong_rows(steps, room):
    cache = PrefixCache(memory_bytes=room * ROW)
    texts = [[text] * (5 * BLOCK) for text in range(4)]
    for text, length in steps:
        chain = list(blocks(texts[text]))
        first = cache.find(chain)
        for i, known in enumerate(first):
            np.testing.assert_array_equal(known, rows(i))
        cache.keep({one: rows(i) for i, one in enumerate(chain[:length])})
        assert cache.memory_used <= room * ROW
        assert len(cache.find(chain)) >= min(length, room)


def test_what_was_used_longest_ago_goes_first_and_a_chain_from_its_end():
    cache = PrefixCache(memory_bytes=6 * ROW)
    old, new = blocks([1] * 4 * BLOCK), blocks([2] * 4 * BLOCK)
    cache.keep(old)
    cache.keep(new)
    assert len(cache.find(list(old))) == 2
    assert len(cache.find(list(new))) == 4
    cache.find(list(old))
    cache.keep(blocks([3] * BLOCK))
    assert len(cache.find(list(old))) == 2
    assert len(cache.find(list(new))) == 3


def test_what_was_named_before_is_known_again(monkeypatch):
    cache = PrefixCache()
    chain = list(blocks(list(range(4 * BLOCK))))
    assert cache.sighted(chain[:2]) == 0
    assert cache.sighted(chain) == 2
    assert cache.sighted(chain) == 4
    monkeypatch.setattr("optserve.runtime.decoding.prefix_cache._MOST_SIGHTED", 2)
    cache.sighted([b"another"])
    assert cache.sighted(chain) == 0


def test_threads_share_it():
    cache = PrefixCache(memory_bytes=20 * ROW)
    failures = []

    def work(seed: int) -> None:
        dice = np.random.default_rng(seed)
        try:
            for _ in range(300):
                chain = blocks([int(dice.integers(6))] * 4 * BLOCK)
                for i, known in enumerate(cache.find(list(chain))):
                    np.testing.assert_array_equal(known, rows(i))
                cache.keep(chain)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.memory_used <= 20 * ROW


@pytest.mark.parametrize("given_", [0, -1, True, "much", 2**63])
def test_sizes_are_checked(given_):
    with pytest.raises(InvalidRequest, match="bytes"):
        as_prefix_cache(given_)
    with pytest.raises(InvalidRequest, match="folder_bytes"):
        PrefixCache(folder_bytes=given_)
