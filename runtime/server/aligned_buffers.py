"""Arrays aligned to 64 bytes, which TensorFlow is fed without a copy.

TensorFlow takes a numpy array over without a copy if it starts at a multiple of 64
bytes; a tensor inside a message starts anywhere. Left to itself TensorFlow would copy
it into fresh memory, whose page faults cost more than the copying. Here it goes into a
buffer used before.
"""

from __future__ import annotations

import contextlib
import math
import weakref

import numpy as np

_ALIGNMENT = 64
_SMALL = 1 << 16  # bytes; below it TensorFlow's own copy is as good


class AlignedBuffers:
    """Keeps buffers for reuse, at most ``keep_bytes`` of them while unused."""

    def __init__(self, keep_bytes: int = 512 << 20) -> None:
        self._keep_bytes = keep_bytes
        self._free: dict[int, np.ndarray] = {}  # each operation on it is atomic

    def aligned(self, array: np.ndarray) -> np.ndarray:
        """``array`` itself if it is small or aligned, else a copy that is.

        For the copy holds what ``empty`` says.
        """
        if array.nbytes < _SMALL or array.dtype.kind == "O":
            return array
        if array.ctypes.data % _ALIGNMENT == 0 and array.flags.c_contiguous:
            return array
        copy = self.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An aligned array with arbitrary content, in a buffer for reuse.

        The buffer is reused when nothing holds the array any more. TensorFlow holds it
        as long as an output or a variable shares its memory; numpy views of it don't
        hold it, so keep none.
        """
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALL or dtype.kind == "O":
            return np.empty(shape, dtype)
        buffer = self._take(size)
        if buffer is None:
            raw = np.empty(size + _ALIGNMENT, np.uint8)
            start = -raw.ctypes.data % _ALIGNMENT
            buffer = raw[start : start + size]
        array = buffer[:size].view(dtype).reshape(shape)
        weakref.finalize(array, self._give_back, buffer).atexit = False
        return array

    def clear(self) -> None:
        """Let go of the buffers that are not in use."""
        self._free.clear()

    def _take(self, size: int) -> np.ndarray | None:
        fitting = [
            (buffer.nbytes, key)
            for key, buffer in list(self._free.items())
            if size <= buffer.nbytes <= 2 * size
        ]
        for _, key in sorted(fitting):
            with contextlib.suppress(KeyError):  # another thread was faster
                return self._free.pop(key)
        return None

    def _give_back(self, buffer: np.ndarray) -> None:
        self._free[id(buffer)] = buffer
        while sum(b.nbytes for b in list(self._free.values())) > self._keep_bytes:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                self._free.pop(next(iter(self._free)))  # the oldest


BUFFERS = AlignedBuffers()
"""Shared by all models of the process."""
