"""A checkpoint's weights as an export stores them.

Query, key and value projections become one matrix, with the query's scale folded in;
``int8`` matrices have one float32 scale for each output row, at ``<name>_scale``, and
``int4`` ones, which the layers have then, scales of blocks (``int4.py``).
Biases, norms and the position table stay float32. What each layer has is stored once
for all layers, stacked along a first axis [L,…] under its name without the layer's
number: a graph then has some twenty variables whatever the number of layers, and can
loop over them. Tensors come one at a time and in a fixed order, so that memory stays
low and two exports are equal.

For a compiler, matrices of 8 or 16 bits with long rows are in panels: [L,P,N,K/P] holds
the P parts of the columns of [L,N,K] one after the other. XLA multiplies one row in one
loop only if it is shorter than 16 KiB (``models/flax/xla_workarounds.py``), and a loop
over parts of the columns of [N,K] skips through memory: 8192 rows of as many int8
numbers took an AMD EPYC (Zen 4) with 2 vCPUs 7.5 ms, in four panels 2.4
(``tests/benchmarks/claims.py jax-panels``).
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
from ..models.weights import weight_shapes
from .int4 import pack, packed_shapes, require_blocks, stored_dtype

SCALE = "_scale"
"""What a quantised matrix's scales are called, after the matrix's own name."""

_STORED = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "int8": np.int8,
}
_BLOCK = 1 << 17  # numbers: they and what is computed of them fit a cache
_LONG_ROW, _PANEL = 4096, 2048  # numbers: where panels begin, and the widest


def packed_weights(
    config: OPTConfig,
    weights: Mapping[str, np.ndarray],
    dtype: str,
    *,
    compiled: bool = False,
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of the export's weights, in memory of their own that a
    framework can take over (:func:`aligned`).

    Args:
        config: the architecture.
        weights: the checkpoint's, by canonical name.
        dtype: of the matrices, one of a SavedModel's.
        compiled: whether long rows are stored in panels.
    """
    for name, stack in stored_parts(config):
        shape = _stacked_shape(name, stack, weights)
        matrix_dtype = stored_dtype(name, dtype)
        if is_matrix(name) and matrix_dtype == "int4":
            yield from _int4(name, stack, weights, shape)
            continue
        kind = _STORED[matrix_dtype] if is_matrix(name) else np.float32
        in_panels = compiled and kind is not np.float32 and is_stacked(name)
        values = aligned(_in_panels(shape) if in_panels else shape, np.dtype(kind))
        scales = aligned(shape[:-1], np.dtype(np.float32)) if kind is np.int8 else None
        for i, parts in enumerate(stack):
            at = (i,) if is_stacked(name) else ()
            rows = by_row(values[at])
            if scales is None:
                _join(rows, parts, weights)
            else:
                quantize(_joined(parts, weights), rows, scales[at])
        yield name, values
        if scales is not None:
            yield name + SCALE, scales


def _int4(
    name: str,
    stack: list[Parts],
    weights: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
) -> Iterator[tuple[str, np.ndarray]]:
    """The words and scales of one layer's matrix after the other."""
    require_blocks(name, shape[-1])
    word_shape, scale_shape = packed_shapes(*shape[1:])
    words = aligned((len(stack), *word_shape), np.dtype(np.int32))
    scales = aligned((len(stack), *scale_shape), np.dtype(np.float16))
    for i, parts in enumerate(stack):
        matrix = _joined(parts, weights)
        by_blocks(partial(_pack_rows, words[i], scales[i], matrix), matrix)
    yield name, words
    yield name + SCALE, scales


def _pack_rows(
    words: np.ndarray, scales: np.ndarray, matrix: np.ndarray, rows: slice
) -> None:
    words[:, rows], scales[:, rows] = pack(matrix[rows])


def weights_digest(config: OPTConfig, weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a checkpoint's weights."""
    digest = hashlib.sha256()
    for name in weight_shapes(config):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def quantize(
    matrix: np.ndarray,
    values: np.ndarray | None = None,
    scales: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 by row: values [out, in], scales [out]; w ≈ value · scale.

    Written into ``values`` and ``scales`` if they are given; the former may be
    [out, P, in/P], as :func:`by_row` gives panels.
    """
    if values is None:
        values = aligned(matrix.shape, np.dtype(np.int8))
    if scales is None:
        scales = aligned(matrix.shape[:1], np.dtype(np.float32))

    def block(rows: slice) -> None:
        part = np.asarray(matrix[rows], np.float32)
        largest = np.maximum(part.max(axis=1), -part.min(axis=1))
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        part = np.rint(part / scale[:, None])
        values[rows] = part.reshape(-1, *values.shape[1:])
        scales[rows] = scale

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

    ``params["layers"]`` is one layer's dict whose leaves are stacked over layers.

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

    def pair(name: str) -> dict[str, Any]:
        linear = {leaf: leaves.get(f"{name}.{leaf}") for leaf in ("weight", "bias")}
        return {leaf: value for leaf, value in linear.items() if value is not None}

    return {
        "embed_tokens": leaves["decoder.embed_tokens.weight"],
        "embed_positions": leaves["decoder.embed_positions.weight"],
        "project_in": pair("decoder.project_in"),
        "layers": {
            name.rpartition(".")[2]: pair(f"{STACK}.{name}") for name in _OF_A_LAYER
        },
        "final_layer_norm": pair("decoder.final_layer_norm"),
        "project_out": pair("decoder.project_out"),
        "lm_head": pair("lm_head"),
    }


STACK = "decoder.layers"
"""What the names of stacked tensors begin with."""

_OF_A_LAYER = (
    "self_attn_layer_norm",
    "self_attn.qkv_proj",
    "self_attn.out_proj",
    "final_layer_norm",
    "fc1",
    "fc2",
)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")

Parts = list[tuple[str, np.float32]]
"""The checkpoint's tensors that are stored as one, and the factor of each."""


def stored_parts(config: OPTConfig) -> Iterator[tuple[str, list[Parts]]]:
    """Names as they are stored, and what of the checkpoint each holds, layer by layer.

    What is not stacked has a list of one.
    """
    one = np.float32(1)
    layers = range(config.num_hidden_layers)
    first = f"{STACK}.0."
    for name in weight_shapes(config):
        parent, _, leaf = name.rpartition(".")
        if not name.startswith(f"{STACK}."):
            yield name, [[(name, one)]]
        elif not name.startswith(first) or parent.endswith(_PROJECTIONS[1:]):
            continue
        elif parent.endswith("q_proj"):
            factors = (np.float32(config.head_dim**-0.5), one, one)
            yield (
                f"{STACK}.self_attn.qkv_proj.{leaf}",
                [
                    [
                        (f"{STACK}.{i}.self_attn.{projection}.{leaf}", factor)
                        for projection, factor in zip(
                            _PROJECTIONS, factors, strict=True
                        )
                    ]
                    for i in layers
                ],
            )
        else:
            rest = name.removeprefix(first)
            yield f"{STACK}.{rest}", [[(f"{STACK}.{i}.{rest}", one)] for i in layers]


def is_stacked(name: str) -> bool:
    """Whether a stored tensor holds all layers'."""
    return name.startswith(f"{STACK}.")


def _stacked_shape(
    name: str, stack: list[Parts], weights: Mapping[str, np.ndarray]
) -> tuple[int, ...]:
    shapes = [weights[part].shape for part, _ in stack[0]]
    one = (sum(shape[0] for shape in shapes), *shapes[0][1:])
    return (len(stack), *one) if is_stacked(name) else one


def _joined(parts: Parts, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """The parts times their factors in one array, without a copy if there is one."""
    if len(parts) == 1:
        return weights[parts[0][0]]
    arrays = [weights[name] for name, _ in parts]
    rows = sum(map(len, arrays))
    joined = aligned((rows, *arrays[0].shape[1:]), np.dtype(np.float32))
    _join(joined, parts, weights)
    return joined


def _join(to: np.ndarray, parts: Parts, weights: Mapping[str, np.ndarray]) -> None:
    """Write the parts times their factors into ``to``, one after the other."""
    start = 0
    for name, factor in parts:
        part = weights[name]
        by_blocks(partial(_copy, to[start:], part, factor), part)
        start += len(part)


def _copy(to: np.ndarray, part: np.ndarray, factor: np.float32, rows: slice) -> None:
    values = part[rows]
    if factor != 1:
        values = np.asarray(values, np.float32) * factor
    to[rows] = values.reshape(-1, *to.shape[1:])


def by_row(matrix: np.ndarray) -> np.ndarray:
    """One layer's tensor with its rows first: of panels [P,N,J] a view [N,P,J]."""
    return matrix.swapaxes(0, 1) if matrix.ndim == 3 else matrix


def _in_panels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape [L,P,N,K/P] for [L,N,K] of long rows: with the fewest panels that
    divide them. Others stay as they are."""
    *lead, rows, width = shape
    fewest = -(-width // _PANEL)
    counts = (n for n in range(fewest, 2 * fewest) if width % n == 0)
    count = next(counts, None) if width >= _LONG_ROW else None
    return shape if count is None else (*lead, count, rows, width // count)


def is_matrix(name: str) -> bool:
    """Whether a stored tensor is a matrix, of the chosen weight dtype."""
    return (
        name.endswith(".weight")
        and "layer_norm" not in name
        and name != "decoder.embed_positions.weight"
    )
