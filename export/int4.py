"""Numbers of four bits with a scale for each block of a row, and how they are packed.

A TFLite file has blocks of neighbours, as LiteRT's kernels take them. A SavedModel's
are made for one loop of XLA's over a row (``savedmodel/int4_jax.py``): of a panel of K
columns, those J = K/32 apart are a block, so that a vector of J scales belongs to a
vector of J numbers; and eight such vectors are one of J 32-bit words.
"""

from __future__ import annotations

import numpy as np

from .errors import ExportError

BLOCK = 32
"""Numbers of a row that share a scale; LiteRT's kernels take multiples of 32."""
_WORD = 8  # numbers of four bits in a word
_PANEL = 2048  # the most columns of a panel: what is multiplied stays in a cache


def quantize_blocks(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int4 by blocks of a row: values [out, in] in −8…7 as int8, and scales
    [out, in/32] float16 with w ≈ value · scale.

    Of a few scales for each block the one with the least squared error is taken: some
    clip the largest number to place the others better.
    """
    rows, width = matrix.shape
    blocks = np.asarray(matrix, np.float32).reshape(rows, width // BLOCK, BLOCK)
    largest = np.abs(blocks).max(axis=2)
    best = values = scales = None
    for levels in (7.0, 7.5, 8.0, 8.5):
        scale = np.maximum(largest / levels, 2.0**-14).astype(np.float16)
        wide = scale.astype(np.float32)[..., None]
        rounded = np.clip(np.rint(blocks / wide), -8, 7)
        error = np.square(rounded * wide - blocks).sum(axis=2)
        if best is None or values is None or scales is None:
            best, values, scales = error, rounded, scale
            continue
        better = error < best
        best = np.where(better, error, best)
        values = np.where(better[..., None], rounded, values)
        scales = np.where(better, scale, scales)
    assert values is not None and scales is not None
    return values.astype(np.int8).reshape(rows, width), scales


def stored_dtype(name: str, dtype: str) -> str:
    """The dtype of one matrix where ``dtype`` was asked for: the token table and the
    head, where four bits cost most, are int8 then."""
    return "int8" if dtype == "int4" and ".layers." not in name else dtype


def require_blocks(name: str, width: int) -> None:
    """Refuse rows of a matrix that blocks do not divide.

    Raises:
        ExportError: for those of ``name``, which are ``width`` long.
    """
    if width % BLOCK:
        raise ExportError(
            f"int4 takes matrices whose rows are multiples of {BLOCK} long, {name} has "
            f"{width}: export with --weights int8"
        )


def packed_shapes(rows: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the words and scales that a SavedModel stores of [N,K] numbers: in
    panels, [P,N,4·J] and [P,N,J]."""
    blocks, fewest = width // BLOCK, -(-width // _PANEL)
    panels = next(n for n in range(fewest, blocks + 1) if blocks % n == 0)
    J = blocks // panels
    return (panels, rows, BLOCK // _WORD * J), (panels, rows, J)


def pack(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``matrix`` [N,K] as words [P,N,4·J] int32 and scales [P,N,J] float16.

    Number t·J + j of a panel, t < 32, is in word (t // 8)·J + j, at bits 4·(t % 8) and
    after; as value + 8, but for the highest bits, which are the value itself. So each,
    where it stands, is a number that needs no shift: (value + 8) · 16^(t % 8), and
    value · 16^7.
    """
    rows, width = matrix.shape
    panels, _, J = packed_shapes(rows, width)[1]
    neighbours = matrix.reshape(rows, panels, BLOCK, J).swapaxes(2, 3)
    values, scales = quantize_blocks(neighbours.reshape(rows, width))
    values = values.reshape(rows, panels, J, BLOCK // _WORD, _WORD).astype(np.int32)
    values[..., :-1] += 8
    nibbles = (values & 15).astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)
    words = np.bitwise_or.reduce(nibbles, axis=-1).view(np.int32)
    words = words.swapaxes(2, 3).reshape(rows, panels, -1)
    return words.swapaxes(0, 1), scales.reshape(rows, panels, J).swapaxes(0, 1)


def unpack(words: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The float32 numbers [N,K] that :func:`pack` gave words and scales of."""
    panels, rows, J = scales.shape
    shifts = np.arange(28, -1, -4, dtype=np.int32)[:, None]
    parts = words.reshape(panels, rows, -1, 1, J)
    values = parts << shifts >> 28  # of value + 8: value, and 8 in the sign
    values[..., :-1, :] ^= -8
    wide = scales.astype(np.float32)[:, :, None]
    numbers = values.reshape(panels, rows, BLOCK, J).astype(np.float32) * wide
    return numbers.swapaxes(0, 1).reshape(rows, -1)
