"""Packed cache rows: the same bits from both frameworks, and read back the same."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.export.savedmodel import packed_cache_jax, packed_cache_tf


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_frameworks_pack_alike(dtype: str) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    rows[0, 0] = 0
    rows[1, 1] *= 1e4
    rows[1, 2] *= 1e-30
    wire = packed_cache_tf.pack(rows, dtype)
    wire = np.asarray(wire)
    ours = np.asarray(packed_cache_jax.pack(rows, dtype))
    np.testing.assert_array_equal(wire.view(np.uint32), ours.view(np.uint32))
    unpacked = np.asarray(packed_cache_jax.unpack(wire, dtype))
    np.testing.assert_array_equal(packed_cache_tf.unpack(wire, dtype), unpacked)
    np.testing.assert_array_equal(packed_cache_tf.rounded(rows, dtype), unpacked)
