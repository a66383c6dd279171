"""Products with matrices that are stored in panels (``export/weights.py`` says why)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from .shared_constants import constant


def by_panels(product: Callable[[Any, Any], Any], x, values):
    """``product`` of ``x`` [M,K] and ``values`` [N,K]: [M,N]; of panels [P,N,K/P] the
    sum of their products with parts of ``x``."""
    if values.shape.rank == 2:
        return product(x, values)
    count = values.shape[0]
    parts = tf.split(x, count, axis=constant(1))
    pairs = zip(parts, tf.unstack(values, count), strict=True)
    return tf.add_n([product(part, panel) for part, panel in pairs])
