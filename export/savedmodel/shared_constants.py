"""Constants that all operations of a graph share.

One for each use would make a third of the graph of an unrolled loop, which a server
copies again for each signature while it gets ready.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import tensorflow as tf

_ATTRIBUTE = "_optserve_constants"
"""Of a graph: they end with it."""


def constant(value: Any):
    """A number or a list of some."""
    return once_a_graph(str(value), lambda: tf.constant(value))


def once_a_graph(key: Hashable, make: Callable[[], Any]):
    """What ``make()`` gave in this graph under this key."""
    if tf.executing_eagerly():
        return make()
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, _ATTRIBUTE):
        setattr(graph, _ATTRIBUTE, {})
    known = getattr(graph, _ATTRIBUTE)
    if key not in known:
        known[key] = make()
    return known[key]
