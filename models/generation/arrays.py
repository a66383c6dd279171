"""The few array functions that the search algorithms need from a framework.

The algorithms (``logits_processors``, ``search``, ``beam_search``) are written once,
over these; ``NumpyArrays`` is here, the frameworks' are ``tf/arrays.py`` and
``flax/arrays.py``. Operators (``+``, ``<``, ``&``, ``x[:, None]``) are the arrays' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


Arrays = Any
"""``NumpyArrays``, ``TensorFlowArrays`` or ``JaxArrays``. They have numpy's ``shape``,
``arange``, ``full``, ``where``, ``concat``, ``stack``, ``reshape``, ``repeat`` (of
rows), ``any``, ``all``, ``sum``, ``max``, ``min``, ``exp``, ``log``, ``sqrt`` and
``argmax`` (of rows), and

    array(x, dtype)            a constant, or ``x`` in another dtype, as ``cast``
    top_k(x, k)                values and indices of the k largest of each row
    take(x, rows)              rows of x
    take_along(x, index)       row b's entries index [B,K] of axis 1
    counted(ids, which, size)  [R,size]: how often row r's ids [R,K] are there, where
                               which [R,K] is true
    marked(ids, which, size)   whether they are
    write(x, i, value)         x with value as its i-th entry
    map(function, tree)        of all arrays in a tree
    while_loop(condition, body, state)
"""


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
    def counted(ids: np.ndarray, which: np.ndarray, size: int) -> np.ndarray:
        """How often each of [R, ``size``] is among row r's ``ids`` [R,K], as far as
        ``which`` is true; int32."""
        ids, which = np.broadcast_arrays(ids, which)
        out = np.zeros((len(ids), size), np.int32)
        rows, _ = np.nonzero(which)
        np.add.at(out, (rows, ids[which]), 1)
        return out

    @classmethod
    def marked(cls, ids: np.ndarray, which: np.ndarray, size: int) -> np.ndarray:
        """Boolean [R, ``size``]: true at row r's ``ids`` [R,K] where ``which`` is."""
        return cls.counted(ids, which, size) > 0


NUMPY = NumpyArrays()


def forbid(xp: Arrays, logits: Array, ids: Array, which: Array) -> Array:
    """``logits`` [R,V] with −inf at row r's ``ids`` [R,K] where ``which`` [R,K] is."""
    never = xp.array(float("-inf"), "float32")
    return xp.where(xp.marked(ids, which, logits.shape[-1]), never, logits)


def log_softmax(xp: Arrays, logits: Array) -> Array:
    """Log-probabilities [R,V]."""
    x = logits - xp.max(logits, 1)[:, None]
    return x - xp.log(xp.sum(xp.exp(x), 1))[:, None]
