"""Attention of the serving graph against sums written out."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.export.savedmodel import attention_tf
from optserve.export.savedmodel.attention_tf import (
    attend_blocks,
    attend_token,
    visible,
)

B, H, T, D = 3, 2, 23, 8


def numbers(S: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(S)
    return tuple(
        rng.standard_normal((B, H, size, D)).astype(np.float32) for size in (S, T, T)
    )


def written_out(q, keys, values, start) -> np.ndarray:
    context = np.empty(q.shape)
    for b, h, s in np.ndindex(*q.shape[:3]):
        seen = start[b] + s + 1
        scores = keys[b, h, :seen].astype(np.float64) @ q[b, h, s]
        weights = np.exp(scores - scores.max())
        context[b, h, s] = weights @ values[b, h, :seen] / weights.sum()
    return context


@pytest.mark.parametrize("S", [2, 4, 5, 12])
def test_blocks(S: int, monkeypatch) -> None:
    monkeypatch.setattr(attention_tf, "_BLOCK", 4)
    start = np.int32([0, 5, T - S])
    q, keys, values = numbers(S)
    actual = attend_blocks(q, keys, values, start)
    right = written_out(q, keys, values, start)
    np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-5)


def test_one_token() -> None:
    start = np.int32([0, 5, T - 1])
    q, keys, values = numbers(1)
    actual = attend_token(q, keys, values, visible(start[:, None], T))
    right = written_out(q, keys, values, start)
    np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-5)
