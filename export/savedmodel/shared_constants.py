"""Constants that all operations of a graph share.

One for each use would make a third of the graph of an unrolled loop, which a server
copies again for each signature while it gets ready.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf

_OF_GRAPHS: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def constant(value: Any):
    """A number or a list of some."""
    return once_a_graph(str(value), lambda: tf.constant(value))


def once_a_graph(key: Any, make: Callable[[], Any]):
    """What ``make()`` gave in this graph under this key."""
    if tf.executing_eagerly():
        return make()
    known = _OF_GRAPHS.setdefault(tf.compat.v1.get_default_graph(), {})
    if key not in known:
        known[key] = make()
    return known[key]
