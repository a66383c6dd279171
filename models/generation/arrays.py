"""The few array functions that the search algorithms need from a framework.

The algorithms (``logits_processors``, ``search``, ``beam_search``) are written once,
over these; ``NumpyArrays`` is here, the frameworks' are ``tf/arrays.py`` and
``flax/arrays.py``. Operators (``+``, ``<``, ``&``, ``x[:, None]``) are the arrays' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Array = Any


class Arrays(Protocol):
    """What ``NumpyArrays`` does, in any framework."""

    def shape(self, x: Array) -> Sequence[Any]: ...
    def array(self, x: Any, dtype: str = "int32") -> Array: ...
    def full(self, shape: Sequence[Any], value: Any, dtype: str) -> Array: ...
    def arange(self, n: Any) -> Array: ...
    def cast(self, x: Array, dtype: str) -> Array: ...
    def where(self, condition: Array, x: Any, y: Any) -> Array: ...
    def concat(self, parts: Sequence[Array], axis: int) -> Array: ...
    def stack(self, parts: Sequence[Array], axis: int) -> Array: ...
    def reshape(self, x: Array, shape: Sequence[Any]) -> Array: ...
    def repeat(self, x: Array, n: int) -> Array: ...
    def any(self, x: Array, axis: int | None = None) -> Array: ...
    def all(self, x: Array, axis: int | None = None) -> Array: ...
    def sum(self, x: Array, axis: int) -> Array: ...
    def max(self, x: Array, axis: int) -> Array: ...
    def min(self, x: Array, axis: int) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def top_k(self, x: Array, k: int) -> tuple[Array, Array]: ...
    def take(self, x: Array, rows: Array) -> Array: ...
    def take_along(self, x: Array, index: Array) -> Array: ...
    def marked(self, ids: Array, which: Array, size: int) -> Array: ...
    def write(self, x: Array, i: Any, value: Array) -> Array: ...
    def map(self, function: Callable, tree: Any) -> Any: ...
    def while_loop(self, condition: Callable, body: Callable, state: Any) -> Any: ...


class NumpyArrays:
    """The functions in numpy: the client's decoding loop runs the same rules."""

    shape = staticmethod(np.shape)
    where = staticmethod(np.where)
    reshape = staticmethod(np.reshape)
    any, all, sum = staticmethod(np.any), staticmethod(np.all), staticmethod(np.sum)
    max, min = staticmethod(np.max), staticmethod(np.min)
    exp, log, sqrt = staticmethod(np.exp), staticmethod(np.log), staticmethod(np.sqrt)
    concat, stack = staticmethod(np.concatenate), staticmethod(np.stack)

    @staticmethod
    def array(x: Any, dtype: str = "int32") -> np.ndarray:
        """A constant."""
        return np.asarray(x, dtype)

    @staticmethod
    def arange(n: int) -> np.ndarray:
        """0 to n − 1, int32."""
        return np.arange(n, dtype=np.int32)

    @staticmethod
    def marked(ids: np.ndarray, which: np.ndarray, size: int) -> np.ndarray:
        """Boolean [R, ``size``]: true at row r's ``ids`` [R,K] where ``which`` is."""
        ids, which = np.broadcast_arrays(ids, which)
        out = np.zeros((len(ids), size), bool)
        rows, _ = np.nonzero(which)
        out[rows, ids[which]] = True
        return out


NUMPY = NumpyArrays()


def forbid(xp: Arrays, logits: Array, ids: Array, which: Array) -> Array:
    """``logits`` [R,V] with −inf at row r's ``ids`` [R,K] where ``which`` [R,K] is."""
    never = xp.array(float("-inf"), "float32")
    return xp.where(xp.marked(ids, which, logits.shape[-1]), never, logits)


def log_softmax(xp: Arrays, logits: Array) -> Array:
    """Log-probabilities [R,V]."""
    x = logits - xp.max(logits, 1)[:, None]
    return x - xp.log(xp.sum(xp.exp(x), 1))[:, None]
