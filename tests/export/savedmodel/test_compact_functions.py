"""Functions with fewer nodes compute what they did."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tensorflow as tf
from optserve.export.savedmodel.compact_functions import compact_functions
from optserve.runtime.model_dir import SAVED_MODEL_FILE
from tensorflow.core.protobuf import saved_model_pb2

from tests.export.exports import exported


class Model(tf.Module):
    """Equal constants in a function, in the branches and the loop that it has, as an
    output, and one that waits for a check."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def __call__(self, x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
            waits = tf.constant(3.0)
        y = (x + tf.constant(3.0)) * tf.constant(3.0) + tf.constant([3.0]) + waits
        y = tf.cond(tf.reduce_sum(x) > 3.0, lambda: y * 2.0 + 2.0, lambda: y - 2.0)
        y = tf.while_loop(
            lambda y: tf.reduce_max(y) < 50.0, lambda y: y * 2.0 + 2.0, [y]
        )
        return {"y": y[0], "three": tf.constant(3.0), "again": tf.constant(3.0)}


def functions(folder):
    data = (folder / SAVED_MODEL_FILE).read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(data).meta_graphs
    return graph.graph_def.library.function


def answers(folder):
    call = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return [call(x=tf.constant(x)) for x in ([1.0, 4.0], [0.0, 2.0], [5.0])]


def test_they_compute_the_same(tmp_path):
    tf.saved_model.save(Model(), str(tmp_path))
    before, nodes = answers(tmp_path), sum(len(f.node_def) for f in functions(tmp_path))
    compact_functions(tmp_path)
    assert sum(len(f.node_def) for f in functions(tmp_path)) <= nodes - 5
    for old, new in zip(before, answers(tmp_path), strict=True):
        assert old.keys() == new.keys()
        for name, value in old.items():
            np.testing.assert_array_equal(value, new[name])


def test_exports_have_each_constant_once_in_a_function():
    for function in functions(exported("pre_ln")):
        constants = [n for n in function.node_def if n.op == "Const" and not n.input]
        values = Counter(n.attr["value"].SerializeToString() for n in constants)
        assert set(values.values()) <= {1}
        assert not any("_output_shapes" in n.attr for n in function.node_def)
