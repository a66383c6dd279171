"""A checkpoint's weights as an export stores them.

Query, key and value projections become one matrix, with the query's scale folded in;
``int8`` matrices have one float32 scale for each output row, at ``<name>_scale``.
Biases, norms and the position table stay float32. Tensors come one at a time and in a
fixed order, so that memory stays low and two exports are equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ..models.checkpoints import aligned
from ..models.config import OPTConfig
from ..models.weights import params_from_weights, weight_shapes

SCALE = "_scale"
"""What a quantised matrix's scales are called, behind the matrix's own name."""

_STORED = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "int8": np.int8,
}
_BLOCK = 1 << 17  # numbers: with what is made of them they fit a processor's cache


def packed_weights(
    config: OPTConfig, weights: Mapping[str, np.ndarray], dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of the export's weights, in memory of their own that a
    framework can take over (:func:`aligned`).

    Args:
        config: the architecture.
        weights: the checkpoint's, by canonical name.
        dtype: of the matrices, one of ``WEIGHT_DTYPES``.
    """
    for name, parts in _sources(config, weights):
        if not is_matrix(name):
            yield name, _joined(parts, np.float32)
        elif dtype == "int8":
            whole = parts[0][0] if len(parts) == 1 else _joined(parts, np.float32)
            values, scale = quantize(whole)
            yield name, values
            yield name + SCALE, scale
        else:
            yield name, _joined(parts, _STORED[dtype])


def weights_digest(config: OPTConfig, weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name in weight_shapes(config):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def quantize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 by row: values [out, in], scales [out]; w ≈ value · scale."""
    values = aligned(matrix.shape, np.dtype(np.int8))
    scales = aligned(matrix.shape[:1], np.dtype(np.float32))

    def block(rows: slice) -> None:
        part = np.asarray(matrix[rows], np.float32)
        largest = np.maximum(part.max(axis=1), -part.min(axis=1))
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        part = part / scale[:, None]
        values[rows], scales[rows] = np.rint(part, out=part), scale

    by_blocks(block, matrix)
    return values, scales


def by_blocks(function: Callable[[slice], None], matrix: np.ndarray) -> None:
    """``function`` of some rows of ``matrix`` at a time, until it has had all.

    In a thread for each processor, since numpy lets go of the interpreter.
    """
    step = max(1, _BLOCK * len(matrix) // max(matrix.size, 1))
    size = len(matrix)
    blocks = [slice(at, min(at + step, size)) for at in range(0, size, step)]
    if len(blocks) == 1:
        return function(blocks[0])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(function, blocks):
            pass


def assemble(
    config: OPTConfig, stored: Mapping[str, Any], pack: Callable[[str, Any, Any], Any]
) -> dict:
    """The params of the pure functions from stored tensors of either framework.

    Args:
        stored: tensors by the names of :func:`packed_weights`.
        pack: makes a matrix's :class:`PackedWeight` (or leaves it as it is) from its
            name, its values and its scales, None without.
    """
    leaves = {
        name: pack(name, value, stored.get(name + SCALE)) if is_matrix(name) else value
        for name, value in stored.items()
        if not name.endswith(SCALE)
    }
    params = params_from_weights(config, leaves)
    for i, layer in enumerate(params["layers"]):
        at = f"decoder.layers.{i}.self_attn.qkv_proj"
        layer["qkv_proj"] = {
            "weight": leaves[f"{at}.weight"],
            "bias": leaves.get(f"{at}.bias"),
        }
    return params


Parts = list[tuple[np.ndarray, float]]
"""Arrays that are stored as one, and the factor of each."""


def _sources(
    config: OPTConfig, weights: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Parts]]:
    """Names as they are stored, and of which of the checkpoint's weights they are."""
    for name in weight_shapes(config):
        parent, _, leaf = name.rpartition(".")
        if parent.endswith("q_proj"):
            of = [parent.replace("q_proj", p) for p in ("q_proj", "k_proj", "v_proj")]
            parts = [weights[f"{projection}.{leaf}"] for projection in of]
            factors = [config.head_dim**-0.5, 1.0, 1.0]
            name = f"{parent.replace('q_proj', 'qkv_proj')}.{leaf}"
            yield name, list(zip(parts, factors, strict=True))
        elif not parent.endswith(("k_proj", "v_proj")):
            yield name, [(weights[name], 1.0)]


def _joined(parts: Parts, dtype: Any) -> np.ndarray:
    """The parts times their factors, behind one another in new memory."""
    rows = sum(len(part) for part, _ in parts)
    found = aligned((rows, *parts[0][0].shape[1:]), np.dtype(dtype))
    start = 0
    for part, factor in parts:
        by_blocks(partial(_copy, found[start:], part, factor), part)
        start += len(part)
    return found


def _copy(to: np.ndarray, part: np.ndarray, factor: float, rows: slice) -> None:
    values = part[rows]
    if factor != 1:
        values = np.asarray(values, np.float32) * np.float32(factor)
    to[rows] = values


def is_matrix(name: str) -> bool:
    """Whether a stored tensor is a matrix, of the chosen weight dtype."""
    return (
        name.endswith(".weight")
        and "layer_norm" not in name
        and name != "decoder.embed_positions.weight"
    )
