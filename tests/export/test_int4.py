"""Four bits a number: what is stored, against the layout read bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.export import int4
from optserve.export.errors import ExportError


def read_by_hand(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Number after number, as the layout is described."""
    panels, rows, J = scales.shape
    numbers = np.zeros((rows, panels, 32 * J))
    for n, p, k in np.ndindex(numbers.shape):
        t, j = divmod(k, J)
        bits = int(words[p, n, t // 8 * J + j]) >> 4 * (t % 8) & 15
        highest = t % 8 == 7
        value = bits - (16 if bits >= 8 else 0) if highest else bits - 8
        numbers[n, p, k] = value * float(scales[p, n, j])
    return numbers.reshape(rows, -1)


@pytest.mark.parametrize(("width", "panels"), [(32, 1), (2080, 5), (4096, 2)])
def test_packed_numbers_are_those_of_the_layout(width, panels):
    matrix = np.random.default_rng(0).standard_normal((3, width), np.float32)
    words, scales = int4.pack(matrix)
    assert words.dtype == np.int32 and scales.dtype == np.float16
    assert (words.shape, scales.shape) == int4.packed_shapes(3, width)
    assert len(words) == panels
    numbers = read_by_hand(words, scales)
    unpacked = int4.unpack(words, scales)
    assert unpacked.dtype == np.float32
    np.testing.assert_allclose(unpacked, numbers, rtol=1e-6)
    # The nearest of sixteen, or a clipped one; blocks are columns J apart.
    step = np.tile(scales.astype(np.float32).swapaxes(0, 1), (1, 1, 32))
    error = np.abs(numbers - matrix)
    assert (error <= 1.51 * step.reshape(3, width)).all()
    assert error.mean() < 0.27 * scales.mean()


def test_all_sixteen_values_survive():
    values = np.tile(np.arange(-8, 8, dtype=np.float32), 4)[:, None]
    matrix = np.ascontiguousarray(values.reshape(1, 64))
    np.testing.assert_array_equal(int4.unpack(*int4.pack(matrix)), matrix)


def test_a_scale_is_the_best_of_some():
    """One large number among small ones: it is clipped to place them better."""
    matrix = np.full((1, 32), 0.45, np.float32)
    matrix[0, 0] = 7
    values, scales = int4.quantize_blocks(matrix)
    clipped = np.square(values * scales.astype(np.float32) - matrix).sum()
    plain = np.square(np.clip(np.rint(matrix), -8, 7) - matrix).sum()
    assert clipped < plain


def test_tables_are_int8():
    assert int4.stored_dtype("decoder.embed_tokens.weight", "int4") == "int8"
    assert int4.stored_dtype("decoder.layers.fc1.weight", "int4") == "int4"
    assert int4.stored_dtype("decoder.layers.fc1.weight", "bfloat16") == "bfloat16"


def test_rows_that_blocks_do_not_divide():
    with pytest.raises(ExportError, match=r"multiples of 32 long, fc1 has 24.*int8"):
        int4.require_blocks("fc1", 24)
