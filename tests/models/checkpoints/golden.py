"""What the tests of each file format share: golden checkpoints, and one comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

VARIANTS = ["pre_ln", "post_ln_proj", "no_final_ln"]
"""Golden checkpoints that Transformers wrote in every format."""


def assert_same(weights, expected: Mapping[str, np.ndarray]) -> None:
    """The same names, shapes and numbers."""
    assert set(weights) == set(expected)
    for name in expected:
        assert weights.shape(name) == expected[name].shape
        np.testing.assert_array_equal(weights[name], expected[name])
