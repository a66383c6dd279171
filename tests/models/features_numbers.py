"""Checks of numbers: every variant, every padding, every dtype."""

from __future__ import annotations

import numpy as np

from .conformance import feature
from .kinds import CONFIGS, FEW, close, padded, tokens
from .loading import expected, loaded, shared

NUMBERS = "Numbers"


def _variants(kind, base, side, names=FEW):
    for name in names:
        model, config = shared(kind, base, name)
        ids = tokens(config, 4, 9)
        mask = padded([9, 5, 1, 3], 9, side)
        reference = expected(config, ids, mask, name=name)
        actual = kind.value(model, ids, attention_mask=mask)
        close(actual, reference[kind.main], mask.astype(bool))


@feature(NUMBERS, "every architecture variant, left padding")
def left(kind, base):
    _variants(kind, base, "left", CONFIGS)


@feature(NUMBERS, "right padding")
def right(kind, base):
    _variants(kind, base, "right")


@feature(NUMBERS, "padding in the middle")
def middle(kind, base):
    _variants(kind, base, "middle")


@feature(NUMBERS, "padding scattered anywhere")
def scattered(kind, base):
    model, config = shared(kind, base)
    ids, mask = tokens(config, 4, 9), padded([1, 4, 7, 9], 9, "scattered")
    reference = expected(config, ids, mask)
    actual = kind.value(model, ids, attention_mask=mask)
    close(actual, reference[kind.main], mask.astype(bool))


@feature(NUMBERS, "one row, one token; the longest sequence there is")
def extremes(kind, base):
    model, config = shared(kind, base)
    for S in (1, config.max_position_embeddings):
        ids = tokens(config, 1, S)
        close(kind.value(model, ids), expected(config, ids)[kind.main])


@feature(NUMBERS, "rows that are all padding stay finite, also in 16 bits")
def all_padding(kind, base):
    dtypes = ("float32", "bfloat16", "float16")
    for dtype in dtypes:
        model, config = loaded(kind, base, "pre-LN", dtype=dtype)
        ids, mask = tokens(config, 4, 9), np.zeros([4, 9], int)
        mask[0, 7:] = 1
        actual = kind.value(model, ids, attention_mask=mask).astype(np.float32)
        assert np.isfinite(actual).all()


@feature(NUMBERS, "bfloat16 and float16 within the type's error")
def half(kind, base):
    for dtype, tolerance in (("bfloat16", 4e-2), ("float16", 6e-3)):
        for name in ("pre-LN", "post-LN, projections"):
            model, config = loaded(kind, base, name, dtype=dtype)
            ids = tokens(config, 4, 9)
            actual = kind.call(model, ids)[kind.main]
            assert str(actual.dtype) == dtype
            reference = expected(config, ids, name=name)[kind.main]
            close(actual, reference, tolerance=tolerance)
