"""Marks of tests of what not every processor has."""

from __future__ import annotations

import pytest
from optserve.export.savedmodel import int8_matmul

from tests.export.savedmodel.exactness import exact_int8

has_kernels = pytest.mark.skipif(
    not int8_matmul.available(), reason="this TensorFlow has no int8 kernels"
)
sums_int8 = pytest.mark.skipif(
    not exact_int8(), reason="this processor's sums of int8 products are not exact"
)
