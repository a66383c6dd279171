"""What is timed when a version is loaded."""

from __future__ import annotations

import pytest
import tensorflow as tf
from optserve.export.savedmodel import autotune, int8_matmul, matmul_tf


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
@pytest.mark.parametrize("slow", ["compiled_sums", "integer_sums"])
def test_the_quicker_way_of_several_rows_is_found(slow: str, monkeypatch) -> None:
    quick = getattr(autotune, slow)

    def many_times(parts, values, **options):
        for _ in range(12):
            sums = quick(parts, values, **options)
            parts += tf.cast(tf.clip_by_value(sums[:, :1], 0.0, 1.0), tf.int8)
        return sums

    monkeypatch.setattr(autotune, slow, many_times)
    found = tf.function(autotune.quicker_compiled, autograph=False)()
    assert bool(found) == (slow == "integer_sums")


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("slow", [False, True])
def test_the_quicker_way_of_one_row_is_found(dtype, slow: bool, monkeypatch) -> None:
    quick = matmul_tf.Matrix._by_row

    def many_times(self, x):
        for _ in range(12 if self.in_turns == slow else 1):
            x = quick(self, x[:, : self.values.shape[1]])
        return x

    monkeypatch.setattr(matmul_tf.Matrix, "_by_row", many_times)
    dtype = tf.as_dtype(dtype)
    found = tf.function(lambda: autotune.quicker_in_turns(dtype), autograph=False)()
    assert bool(found) != slow
