"""Aligned copies in buffers that are reused only when nobody looks at them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.runtime.server import SessionOptions
from optserve.runtime.server.aligned_buffers import AlignedBuffers
from optserve.runtime.server.servable import Servable

from . import toy_models


def misaligned(count: int, value: float) -> np.ndarray:
    raw = bytearray(4 * count + 65)
    start = 1 - np.frombuffer(raw, np.uint8).ctypes.data % 64
    array = np.frombuffer(raw, "<f4", count, start % 64)
    array[:] = value
    return array


def test_copies_are_aligned_and_equal():
    buffers = AlignedBuffers()
    given = misaligned(40_000, 3.0)
    assert given.ctypes.data % 64
    copy = buffers.aligned(given)
    assert copy.ctypes.data % 64 == 0 and (copy == given).all()
    assert buffers.aligned(copy) is copy
    broadcast = np.broadcast_to(np.float32(2), (300, 300))
    assert buffers.aligned(broadcast).flags.c_contiguous


def test_small_and_string_arrays_pass_through():
    buffers = AlignedBuffers()
    small, strings = misaligned(10, 1.0), np.array([b"x"] * 20_000, object)
    assert buffers.aligned(small) is small and buffers.aligned(strings) is strings


def test_a_buffer_is_reused_when_its_copy_is_gone():
    buffers = AlignedBuffers()
    first = buffers.aligned(misaligned(40_000, 1.0))
    place = first.ctypes.data
    second = buffers.aligned(misaligned(40_000, 2.0))
    assert second.ctypes.data != place
    del first
    assert buffers.aligned(misaligned(39_000, 3.0)).ctypes.data == place


def test_an_output_that_shares_its_input_keeps_its_values(tmp_path):
    @tf.function(input_signature=toy_models.ROWS)
    def same(x):
        return {"y": tf.identity(x)}

    toy_models.save(tmp_path / "1", same=same)
    servable = Servable(str(tmp_path / "1"), SessionOptions())
    signature = servable.signatures["same"]
    outputs = [
        servable.run(signature, {"x": misaligned(40_000, i).reshape(2, -1)}, ["y"])[0]
        for i in range(8)
    ]
    assert [output.min() for output in outputs] == list(range(8))
    assert [output.max() for output in outputs] == list(range(8))


def test_unused_buffers_are_bounded():
    buffers = AlignedBuffers(keep_bytes=500_000)
    copies = [buffers.aligned(misaligned(40_000, i)) for i in range(5)]
    del copies
    assert sum(b.nbytes for b in buffers._free.values()) <= 500_000


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "bfloat16"])
def test_every_dtype(dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    given = np.ones(200_001, kind)[1:]
    copy = AlignedBuffers().aligned(given)
    assert copy.dtype == given.dtype and (copy == given).all()
