"""What a processor does quickly, found out once, when a version is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from ...runtime.contract import FOUND_AT_LOAD
from . import int8_matmul
from .matmul_tf import Kernels

NATIVE_BFLOAT16, EXACT_INT8 = FOUND_AT_LOAD

_MULTIPLIED = {tf.int8: EXACT_INT8, tf.bfloat16: NATIVE_BFLOAT16}
"""What says that a processor multiplies such weights itself."""


class FoundAtLoad(tf.saved_model.experimental.TrackableResource):
    """The boolean that ``find()`` gives when a model is loaded.

    TensorFlow's log says which (at level INFO), whatever server loads it. ``name`` must
    say what it is of: in one process it is one resource. A ``pinned`` answer is a part
    of the graph: a model pinned to yes refuses to load where the answer would be no.
    """

    def __init__(
        self, find: Callable[[], Any], name: str, *, pinned: bool | None = None
    ) -> None:
        super().__init__()
        self._find, self._name, self.known = find, name, pinned
        with tf.init_scope():  # not in the branch of a graph that asks first
            _ = self.resource_handle

    def _create_resource(self):
        unknown: Any = None
        return tf.raw_ops.VarHandleOp(
            dtype=tf.bool, shape=tf.TensorShape(unknown), shared_name=self._name
        )

    def _initialize(self):
        answer = self._find()
        what = FOUND_AT_LOAD.get(self._name, self._name)
        said = tf.where(answer, f"optserve: {what}: yes", f"optserve: {what}: no")
        tf.print(said, output_stream=tf.compat.v1.logging.info)
        if self.known:
            tf.debugging.Assert(
                answer,
                [
                    "this version was exported with --tuned-for this-processor, and "
                    f"the one here has no {what}: export it again without"
                ],
            )
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=answer)

    def read(self):
        """The answer: a tensor, or a bool where it is pinned."""
        if self.known is not None:
            return self.known
        answer = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.bool)
        answer.set_shape([])
        return answer


class Known(NamedTuple):
    """An answer that holds wherever this part of a graph is run."""

    known: bool

    def read(self) -> bool:
        """The answer."""
        return self.known


Answer = FoundAtLoad | Known


def questions(
    weights: tf.DType, *, portable: bool, pinned: bool = False
) -> dict[str, FoundAtLoad]:
    """What is to be found out for products of this type of weights.

    ``portable`` leaves out the kernels that TensorFlow has on x86-64 alone; ``pinned``
    takes this processor's answers for good.
    """
    probes: dict[str, Callable[[], Any]] = {}
    if weights in (tf.int8, tf.bfloat16):
        probes[NATIVE_BFLOAT16] = native_bfloat16
    if weights == tf.int8 and not portable and int8_matmul.available():
        probes[EXACT_INT8] = int8_matmul.exact
    return {
        name: FoundAtLoad(find, name, pinned=_answer(find) if pinned else None)
        for name, find in probes.items()
    }


def plain_is_quicker(
    weights: tf.DType, resources: Mapping[str, Answer], *, int8_activations: bool
) -> Answer:
    """Whether TensorFlow's ops multiply several rows quicker than XLA's programs.

    For float32 they do, and for int8 times numbers of 7 or 8 bits; other weights of 8
    or 16 bits XLA converts first, and so do the ops unless the processor multiplies
    them itself.
    """
    if weights == tf.float32 or (int8_activations and EXACT_INT8 in resources):
        return Known(True)
    return resources.get(_MULTIPLIED.get(weights, ""), Known(False))


def _answer(find: Callable[[], Any]) -> bool:
    return bool(tf.function(find, autograph=False)())


def kernels(resources: Mapping[str, Answer], *, int8_activations: bool) -> Kernels:
    """The kernels that were found, inside a graph."""
    native, exact = resources.get(NATIVE_BFLOAT16), resources.get(EXACT_INT8)
    return Kernels(
        None if native is None else native.read(),
        None if exact is None else exact.read(),
        int8_activations,
    )


def native_bfloat16():
    """Whether products of bfloat16 are fast here, as a boolean to be found out at load.

    Where processors have the instructions, oneDNN multiplies and rounds to the nearest.
    Elsewhere TensorFlow's own kernel, which cuts off, does it in more steps than a
    product of float32 has. ``tests/benchmarks/claims.py int8-rows`` compares them on
    the processor that it is run on.
    """
    one = 1 + tf.floor(tf.random.uniform([]))  # nothing to be folded into a constant
    x = tf.reshape(tf.one_hot(0, 64) + 0.75 * tf.one_hot(1, 64), [1, 64]) * one
    y = tf.reshape(tf.one_hot(0, 64) + 2.0**-7 * tf.one_hot(1, 64), [64, 1])
    product = tf.matmul(tf.cast(x, tf.bfloat16), tf.cast(y, tf.bfloat16))
    return tf.cast(product[0, 0], tf.float32) > 1  # 1 + 0.75 * 2^-7, the last bit 2^-7
