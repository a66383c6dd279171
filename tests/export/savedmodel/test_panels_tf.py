"""Products of panels are those of the matrix whose columns they are."""

from __future__ import annotations

from functools import partial

import numpy as np
import tensorflow as tf
from optserve.export.savedmodel.panels_tf import by_panels


def test_panels_and_the_matrix_itself_give_one_product() -> None:
    rng = np.random.default_rng(0)
    x, values = rng.integers(-9, 9, (3, 12)), rng.integers(-9, 9, (5, 12))
    panels = np.stack(np.split(values, 4, axis=1))
    product = partial(tf.matmul, transpose_b=True)
    for stored in (values, panels):
        actual = by_panels(product, tf.constant(x), tf.constant(stored))
        np.testing.assert_array_equal(actual, x @ values.T)
