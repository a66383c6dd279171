"""A checkpoint's weights as an export stores them.

Query, key and value projections become one matrix, with the query's scale folded in;
``int8`` matrices have one float32 scale for each output row, at ``<name>_scale``.
Biases, norms and the position table stay float32. Tensors come one at a time and in a
fixed order, so that memory stays low and two exports are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

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
_ROWS = 4096  # quantised at a time: bounds the float32 copies of a large table


def packed_weights(
    config: OPTConfig, weights: Mapping[str, np.ndarray], dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of the export's weights.

    Args:
        config: the architecture.
        weights: the checkpoint's, by canonical name.
        dtype: of the matrices, one of ``WEIGHT_DTYPES``.
    """
    for name in weight_shapes(config):
        parent, _, leaf = name.rpartition(".")
        if parent.endswith(("k_proj", "v_proj")):
            continue
        if parent.endswith("q_proj"):
            array = _fused(config, weights, parent, leaf)
            name = parent.replace("q_proj", "qkv_proj") + "." + leaf
        else:
            array = weights[name]
        if array.ndim < 2 or name == "decoder.embed_positions.weight":
            yield name, np.asarray(array, np.float32)
        elif dtype == "int8":
            values, scale = quantize(array)
            yield name, values
            yield name + SCALE, scale
        else:
            yield name, np.asarray(array).astype(_STORED[dtype], copy=False)


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
    values = np.empty(matrix.shape, np.int8)
    scales = np.empty(matrix.shape[0], np.float32)
    for start in range(0, len(matrix), _ROWS):
        part = np.asarray(matrix[start : start + _ROWS], np.float32)
        largest = np.abs(part).max(axis=1)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        values[start : start + _ROWS] = np.rint(part / scale[:, None])
        scales[start : start + _ROWS] = scale
    return values, scales


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


def _fused(
    config: OPTConfig, weights: Mapping[str, np.ndarray], query: str, leaf: str
) -> np.ndarray:
    parts = [
        np.asarray(weights[f"{query.replace('q_proj', p)}.{leaf}"], np.float32)
        for p in ("q_proj", "k_proj", "v_proj")
    ]
    parts[0] = parts[0] * np.float32(config.head_dim**-0.5)
    return np.concatenate(parts)


def is_matrix(name: str) -> bool:
    """Whether a stored tensor is a matrix, of the chosen weight dtype."""
    return (
        name.endswith(".weight")
        and "layer_norm" not in name
        and name != "decoder.embed_positions.weight"
    )
