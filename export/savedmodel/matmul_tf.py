"""Stored weights in TensorFlow, multiplied by the processor's best kernels.

Which kernels those are is found out when a version is loaded (``autotune.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from ...models.tf.model import NORM_EPSILON
from ...models.weights import PackedNorm, PackedWeight
from . import int8_matmul
from .panels_tf import by_panels
from .shared_constants import constant


def one_of(stack, i):
    """``stack[i]``, in the memory of the stack, by as few operations as there can be.

    ``i`` is a number, or for many stacks at one place :func:`place` of a tensor.
    """
    if isinstance(stack, (Matrix, Norm)):
        return stack.one_of(i)
    begin, end = i if isinstance(i, tuple) else (constant([i]), constant([i + 1]))
    element = tf.raw_ops.StridedSlice(
        input=stack, begin=begin, end=end, strides=constant([1]), shrink_axis_mask=1
    )
    element.set_shape(stack.shape[1:])
    return element


def place(i):
    """A scalar tensor as :func:`one_of` takes it."""
    return tf.reshape(i, [1]), tf.reshape(i + 1, [1])


class Unrolled(NamedTuple):
    """``layers`` of one each, made where they are used: what a loop takes in are then
    variables, not a tensor for each weight of each layer."""

    stacked: dict[str, Any]
    count: int

    def layers(self) -> list[dict[str, Any]]:
        """Weights of each layer by itself, in the memory of the stack."""
        leaves = [all_of(x, self.count) for x in tf.nest.flatten(self.stacked)]
        return [
            tf.nest.pack_sequence_as(self.stacked, [leaf[i] for leaf in leaves])
            for i in range(self.count)
        ]


def all_of(stack, count: int) -> list[Any]:
    """Every ``stack[i]``, by one operation."""
    if isinstance(stack, (Matrix, Norm)):
        return stack.all_of(count)
    return tf.unstack(stack, count)


def either(answer: Any, yes: Callable[[], Any], no: Callable[[], Any]):
    """What ``yes`` or ``no`` gives: decided in the graph, unless the answer is known
    and only one of them is needed there."""
    if isinstance(answer, bool):
        return yes() if answer else no()
    return tf.cond(answer, yes, no)


_MOST_ROWS_OF_16_BITS = 64
"""Beyond, converting a matrix weighs less than a second product with it."""


class Kernels(NamedTuple):
    """What is the quickest here: boolean scalars or, if known, bools. None: not asked.

    ``int8_activations`` says what products of int8 are made of: numbers of 8 bits, or 7
    where those are not exact; else of 16 bits, where that is exact.
    """

    native_bfloat16: Any = None
    exact_int8: Any = None
    int8_activations: bool = False

    @property
    def exact_bits(self) -> int:
        """Of each number that int8 is multiplied with where that is exact."""
        return 8 if self.int8_activations else 16

    def multiply_int8(self, rows: Any) -> Any:
        """Whether ``rows`` rows should be multiplied as such by int8: where that is
        exact, but of 16 bits only a few."""
        if self.int8_activations or self.exact_int8 is False:
            return self.exact_int8
        return self.exact_int8 & (rows <= _MOST_ROWS_OF_16_BITS)


class Matrix(PackedWeight):
    """A stored matrix [out, in] of any of the weight dtypes, in panels [P, out, in/P]
    if its rows are long and it is for a compiler, too, or a stack of them."""

    def __init__(
        self, values: Any, scale: Any = None, *, kernels: Kernels | None = None
    ) -> None:
        self.values, self.scale = values, scale
        self.kernels = kernels or Kernels()

    def one_of(self, i: Any) -> Matrix:
        """One of the matrices of a stack."""
        scale = None if self.scale is None else one_of(self.scale, i)
        return type(self)(one_of(self.values, i), scale, kernels=self.kernels)

    def all_of(self, count: int) -> list[Matrix]:
        """All matrices of a stack."""
        values = tf.unstack(self.values, count)
        scales = [None] * count if self.scale is None else tf.unstack(self.scale, count)
        pairs = zip(values, scales, strict=True)
        return [type(self)(x, scale, kernels=self.kernels) for x, scale in pairs]

    def matmul(self, x):
        """``x`` [N, in] times the matrix: [N, out].

        Times int8 as such where that is exact; else values of 8 or 16 bits are
        converted, at each call anew, to bfloat16 where the processor multiplies that
        (a sixth of a prompt's time), or to float32.
        """
        if self.values.dtype == tf.float32:
            return self._scaled(_float32_product(x, self.values))
        if self.kernels.exact_int8 is None:
            return self._converted(x)

        def otherwise():
            if self.kernels.int8_activations:
                return self._int8_product(x, bits=7)
            return self._converted(x)

        exact = self.kernels.multiply_int8(tf.shape(x)[0])
        bits = self.kernels.exact_bits
        return either(exact, lambda: self._int8_product(x, bits=bits), otherwise)

    def _int8_product(self, x, *, bits: int, keep: bool = False):
        return int8_matmul.product(x, self.values, self.scale, keep=keep, bits=bits)

    def _scaled(self, y):
        return y if self.scale is None else y * self.scale

    def _converted(self, x):
        native = self.kernels.native_bfloat16
        if native is None:
            return self._converted_to(tf.float32, x)
        return either(
            native,
            lambda: self._converted_to(tf.bfloat16, x),
            lambda: self._converted_to(tf.float32, x),
        )

    def _converted_to(self, dtype: tf.DType, x):
        with tf.control_dependencies([x]):  # else all are converted at once: gigabytes
            values = tf.cast(tf.identity(self.values), dtype)
        y = by_panels(_matmul_transposed, tf.cast(x, dtype), values)
        return self._scaled(y)

    def take(self, rows):
        taken = tf.cast(tf.gather(self.values, rows), tf.float32)
        if self.scale is None:
            return taken
        return taken * tf.gather(self.scale, rows)[..., None]


def _matmul_transposed(x, values):
    """``x`` [N, in] times ``values`` [out, in], of one dtype: [N, out] float32."""
    return tf.cast(tf.matmul(x, values, transpose_b=True), tf.float32)


def _float32_product(x, values):
    """``x`` [N, in] times ``values`` [out, in].

    One row by TensorFlow's own kernel, not by the one that TensorFlow takes from
    oneDNN: four fifths of the time (``tests/benchmarks/claims.py float32-row``, an AMD
    EPYC (Zen 4) with 2 vCPUs), nine tenths of a whole step of 125m.
    """

    def own():
        return tf.raw_ops.BatchMatMulV3(
            x=x, y=values, Tout=tf.float32, adj_x=False, adj_y=True
        )

    return tf.cond(
        tf.shape(x)[0] == 1, own, lambda: tf.matmul(x, values, transpose_b=True)
    )


class KeptInt8Matrix(Matrix):
    """An int8 matrix that its kernel packs once and keeps, in memory of the same size.

    Only where :func:`.int8_matmul.exact` holds, and one place of a graph for each
    matrix: the place keeps what it saw first.
    """

    def matmul(self, x):
        return self._int8_product(x, bits=self.kernels.exact_bits, keep=True)


class Norm(PackedNorm):
    """A layer norm in few operations.

    Not in those that TensorFlow may make oneDNN's kernel of, which gets ready anew at
    each call. Where it doesn't, 25 norms of one row take 0.35 ms instead of 0.39 on an
    AMD EPYC (Zen 4) with 2 vCPUs: ``tests/benchmarks/claims.py tf-norm``.
    """

    def __init__(self, weight: Any, bias: Any) -> None:
        self.weight, self.bias = weight, bias

    def one_of(self, i: Any) -> Norm:
        """One of the norms of a stack."""
        return Norm(one_of(self.weight, i), one_of(self.bias, i))

    def all_of(self, count: int) -> list[Norm]:
        """All norms of a stack."""
        pairs = zip(all_of(self.weight, count), all_of(self.bias, count), strict=True)
        return [Norm(*pair) for pair in pairs]

    def __call__(self, x):
        last = constant([-1])
        x = x - tf.reduce_mean(x, axis=last, keepdims=True)
        variance = tf.reduce_mean(x * x, axis=last, keepdims=True)
        x = x * tf.math.rsqrt(variance + constant(NORM_EPSILON))
        return x * self.weight + self.bias


def fuse_norms(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` with a :class:`Norm` for each layer norm that has weights."""

    def fused(name: str, pair: Any) -> Any:
        if not name.endswith("layer_norm") or not pair:
            return pair
        return {"weight": Norm(**pair)}

    layers = {name: fused(name, pair) for name, pair in params["layers"].items()}
    rest = {name: fused(name, pair) for name, pair in params.items()}
    return {**rest, "layers": layers}
