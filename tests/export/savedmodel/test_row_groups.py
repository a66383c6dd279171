"""Any number of rows through functions of a few sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel.row_groups import by_rows, position


@pytest.fixture(scope="module")
def doubled():
    """Twice a vector, by functions for 2 and 3 rows; and which of them are made."""
    sizes = []

    def of(size: int):
        sizes.append(size)

        def function(x, y):
            assert x.shape[0] == y.shape[0] == size
            return 2 * x, x[:, None] + y

        return function

    @tf.function(input_signature=[tf.TensorSpec([None]), tf.TensorSpec([None, None])])
    def run(x, y):
        outputs = tf.TensorSpec([None]), tf.TensorSpec([None, None])
        return by_rows((2, 3), of, (x, y), outputs)

    run.get_concrete_function()
    assert set(sizes) == {2, 3}
    return run


@pytest.mark.parametrize("rows", range(9))
def test_every_number_of_rows(doubled, rows):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal(rows).astype(np.float32)
    y = rng.standard_normal((rows, 2)).astype(np.float32)
    twice, sums = doubled(x, y)
    np.testing.assert_array_equal(twice, 2 * x)
    np.testing.assert_array_equal(sums, x[:, None] + y)


def test_beyond_its_limit_a_size_is_not_chosen():
    def of(size: int):
        return lambda x: (tf.fill([size], size) + 0 * x,)

    @tf.function
    def chosen(x, length):
        outputs = (tf.TensorSpec([None], tf.int32),)
        limits = [tf.int32.max, 32]
        return by_rows((1, 8), of, (x,), outputs, limits=limits, length=length)[0]

    for rows, length, expected in ((1, 99, 1), (5, 32, 8), (5, 33, 1), (20, 4, 8)):
        x = tf.zeros([rows], tf.int32)
        assert chosen(x, tf.constant(length)).numpy().tolist() == [expected] * rows


def test_position_counts_smaller_sizes():
    actual = [int(position((1, 8), size)) for size in (1, 2, 8, 9)]
    assert actual == [0, 1, 1, 2]
