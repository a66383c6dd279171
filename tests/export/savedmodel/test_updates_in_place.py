"""Updates in place: nobody reads what is written into afterwards, or from outside.

TensorFlow does not see that ``InplaceUpdate`` changes its operand. So whoever else
reads the operand, or another view of its memory, has to come before.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from optserve.runtime.server.aligned_buffers import BUFFERS
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tests.export.exports import INT8_COMPILED_LOOPS, exported, served

VIEWS = {"Reshape", "Identity", "StridedSlice", "Squeeze", "ExpandDims", "EnsureShape"}
"""Operations whose result may be the memory of their first operand."""
EXPORTS = [
    {"weights": "int8"},
    {"weights": "float32"},
    INT8_COMPILED_LOOPS,
    {"framework": "jax"},
]


class Body:
    """A function of a graph, as who takes what."""

    def __init__(self, function) -> None:
        self.nodes = {node.name: node for node in function.node_def}
        self.takers = defaultdict(set)
        for node in function.node_def:
            for name in node.input:
                if not name.startswith("^"):
                    self.takers[name].add(node.name)

    def before(self, name: str) -> set[str]:
        """Nodes that have run when ``name`` runs."""
        seen, stack = set(), [name]
        while stack:
            for other in self.nodes[stack.pop()].input:
                node = other.lstrip("^").split(":")[0]
                if node in self.nodes and node not in seen:
                    seen.add(node)
                    stack.append(node)
        return seen

    def readers(self, tensor: str, but: str) -> set[str]:
        """Nodes that read a tensor or a view of it."""
        nodes = set()
        for name in self.takers[tensor] - {but}:
            node = self.nodes[name]
            if node.op in VIEWS and node.input[0] == tensor:
                nodes |= self.readers(f"{name}:output:0", but)
            else:
                nodes.add(name)
        return nodes

    def read_too_late(self) -> list[tuple[str, str]]:
        """Updates, and nodes that may read their operand after them."""
        return [
            (update.name, reader)
            for update in self.nodes.values()
            if update.op == "InplaceUpdate"
            for reader in self.readers(update.input[0], update.name)
            if reader not in self.before(update.name)
        ]


def bodies(path) -> dict[str, Body]:
    data = (path / "saved_model.pb").read_bytes()
    library = SavedModel.FromString(data).meta_graphs[0].graph_def.library
    return {f.signature.name: Body(f) for f in library.function}


@pytest.mark.parametrize("options", EXPORTS, ids=str)
def test_readers_come_before_the_update(options):
    found = bodies(exported("pre_ln", **options))
    updates = [n for b in found.values() for n in b.nodes.values() if "Inplace" in n.op]
    assert updates
    assert not {name: late for name, b in found.items() if (late := b.read_too_late())}


def test_a_reader_that_comes_too_late_is_found():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([4, 2])])
    def wrong(x):
        new = tf.raw_ops.InplaceUpdate(x=x, i=[0], v=tf.ones([1, 2]))
        return new, tf.reduce_sum(tf.reshape(x, [8]))

    (late,) = Body(wrong.get_concrete_function().function_def).read_too_late()
    assert late[0].startswith("InplaceUpdate") and late[1].startswith("Sum")


@pytest.mark.parametrize("options", EXPORTS, ids=str)
def test_a_caller_s_cache_stays_as_it_is(options):
    """Arrays at 64-byte boundaries are given to TensorFlow without a copy."""
    model = served("pre_ln", **options)
    rows = BUFFERS.aligned(
        np.random.default_rng(0)
        .standard_normal((2, 9, *model.row_shape))
        .astype(np.float32)
    )
    given = {
        "input_ids": np.int32([[5, 6], [7, 8]]),
        "input_length": np.int32([2, 1]),
        "cache": rows,
        "cache_length": np.int32([9, 4]),
    }
    before = rows.copy()
    first, again = model("decode", **given), model("decode", **given)
    np.testing.assert_array_equal(rows, before)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
