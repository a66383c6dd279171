"""The buffer of keys and values, compared with one filled vector by vector."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel.graph_tf import unpack_cache
from optserve.export.savedmodel.packed_cache_tf import pack, unpack

L, H, D = 2, 3, 8
LENGTHS = {
    "some of it": [2, 0, 4],
    "more than there is": [7, 3, 4],  # its neighbour's rows are not its own
}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("slots", [4, 1, 0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_every_vector_of_a_row_comes_to_its_place(dtype, slots, length):
    B, room = len(length), 2
    values = np.random.default_rng(0).standard_normal([B, slots, L, 2, H, D])
    wire = pack(tf.constant(values, tf.float32), dtype).numpy()
    for row, used in zip(wire, length, strict=True):
        row[used:] = np.nan
    kv, T = unpack_cache(tf.constant(wire), tf.constant(length), dtype, room=room)
    assert slots + room == T
    expected = np.zeros([L, 2, B, H, slots + room, D], np.float32)
    for b in range(B):
        for slot in range(min(length[b], slots)):
            expected[:, :, b, :, slot] = unpack(tf.constant(wire[b, slot]), dtype)
    np.testing.assert_array_equal(kv, expected.reshape(-1, D))
