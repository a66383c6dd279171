"""Constants that a graph has once, and that end with it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import tensorflow as tf
from optserve.export.savedmodel.shared_constants import constant, once_a_graph


def test_one_node_for_all_uses_and_another_for_another_value():
    @tf.function
    def several():
        first = [constant(3), constant([3]), constant(3.0)]
        again = [constant(3), constant([3]), constant(3.0)]
        assert all(a is b for a, b in zip(first, again, strict=True))
        return first

    graph = several.get_concrete_function().graph
    assert [op.type for op in graph.get_operations()].count("Const") == 3
    for actual, expected in zip(several(), (3, [3], 3.0), strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == tf.constant(expected).dtype


def test_each_graph_has_its_own():
    """A loop's body is a graph, too: what it takes from outside is copied each time."""
    graphs = []

    def body(i):
        graphs.append(constant(2).graph)
        return i + constant(2)

    @tf.function
    def loop():
        graphs.append(constant(2).graph)
        return tf.while_loop(lambda i: i < constant(7), body, [constant(2)])[0]

    assert loop() == 8
    assert len(set(map(id, graphs))) == len(graphs) >= 2


def test_without_a_graph_they_are_made_anew():
    made = [once_a_graph("key", object) for _ in range(2)]
    assert made[0] is not made[1]


def test_a_graph_is_not_kept_by_its_constants():
    function = tf.function(lambda: constant(3))
    graph = weakref.ref(function.get_concrete_function().graph)
    assert graph() is not None
    del function
    gc.collect()
    assert graph() is None
