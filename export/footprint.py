"""How big a model is, from its configuration alone: parameters, bytes, memory.

Nothing is loaded, so that a 66b export can be judged on a laptop. The parameter
count is of the published architecture; bytes are of the artefact that the exporter
writes for a weight type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..models.config import OPTConfig
from ..models.weights import weight_shapes
from ..runtime.contract import CacheLayout
from .int4 import BLOCK, stored_dtype

GIB = 1024**3

_MATRIX_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a model: in matrices (and their rows), and in all the rest.

    Matrices are what a weight type applies to; biases, norms and positions stay
    float32.
    """

    matrices: int
    matrix_rows: int
    other: int

    @property
    def total(self) -> int:
        """All parameters, the tied head counted once."""
        return self.matrices + self.other


def parameter_count(config: Mapping[str, Any]) -> ParameterCount:
    """Count the parameters of a ``config.json``."""
    shapes = weight_shapes(OPTConfig.from_dict(dict(config)))
    positions = shapes.pop("decoder.embed_positions.weight")
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    vectors = [shape for shape in shapes.values() if len(shape) != 2]
    return ParameterCount(
        matrices=sum(map(prod, matrices)),
        matrix_rows=sum(rows for rows, _ in matrices),
        other=sum(map(prod, vectors)) + prod(positions),
    )


def weights_bytes(config: Mapping[str, Any], dtype: str = "float32") -> int:
    """Bytes of the weights stored as ``dtype``, scales of rows and blocks included."""
    if dtype == "int4":
        return _int4_bytes(config)
    count = parameter_count(config)
    scales = 4 * count.matrix_rows if dtype == "int8" else 0
    return _MATRIX_BYTES[dtype] * count.matrices + scales + 4 * count.other


def _int4_bytes(config: Mapping[str, Any]) -> int:
    """What is not int4 then is int8; blocks have scales of 16 bits."""
    total = weights_bytes(config, "int8")
    for name, shape in weight_shapes(OPTConfig.from_dict(dict(config))).items():
        if len(shape) == 2 and stored_dtype(name, "int4") == "int4":
            numbers = prod(shape)
            as_int8 = numbers + 4 * shape[0]
            total += numbers // 2 + 2 * numbers // BLOCK - as_int8
    return total


def held_bytes(config: Mapping[str, Any], dtype: str = "float32") -> int:
    """Memory that a loaded version's weights take.

    The loop for several rows keeps int8 matrices once more, packed for oneDNN
    (``savedmodel/int8_matmul.py``).
    """
    packed = 1 if dtype == "int8" else 0
    return weights_bytes(config, dtype) + packed * parameter_count(config).matrices


def tflite_bytes(config: Mapping[str, Any], dtype: str = "float32") -> int:
    """Bytes of a ``.tflite`` file's weights (``tflite/weights.py`` says how stored).

    A scale is stored with its matrix; the token table's once more, as rows to gather,
    and int4's once more for the kernels.
    """
    shapes = weight_shapes(OPTConfig.from_dict(dict(config)))
    total = 0
    for name, shape in shapes.items():
        numbers = prod(shape)
        if len(shape) < 2 or name == "decoder.embed_positions.weight":
            total += 4 * numbers
        elif dtype == "int4" and ".layers." in name:
            total += numbers // 2 + 2 * (2 * numbers // 32)
        elif dtype in ("int8", "int4"):
            total += numbers + 4 * shape[0] * (2 if "embed_tokens" in name else 1)
        else:
            total += _MATRIX_BYTES[dtype] * numbers
    return total


def cache_layout(config: Mapping[str, Any], dtype: str = "float32") -> CacheLayout:
    """The cache's layout for a ``config.json``."""
    heads = int(config["num_attention_heads"])
    return CacheLayout(
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        head_dim=int(config["hidden_size"]) // heads,
        dtype=dtype,
    )


def serving_bytes(
    config: Mapping[str, Any],
    *,
    weights: str = "float32",
    cache: str = "float32",
    versions: int = 2,
    rows: int = 8,
    sessions: Mapping[str, int] | None = None,
) -> int:
    """Memory that a server needs.

    Two versions of the weights by default, because a new one is loaded before the
    old one ends; for ``rows`` callers a full cache twice (the request, and its
    float32 copy inside the graph) and their logits; 1 GiB for the server itself.
    ``sessions`` are the manifest's: their slots, all full, for each version.
    """
    layout = cache_layout(config, cache)
    positions = int(config["max_position_embeddings"])
    unpacked = cache_layout(config).row_bytes
    working = rows * positions * (layout.row_bytes + unpacked)
    logits = 4 * rows * int(config["vocab_size"])
    held = held_bytes(config, weights) + session_bytes(layout, sessions)
    return versions * held + working + logits + GIB


def session_bytes(layout: CacheLayout, sessions: Mapping[str, int] | None) -> int:
    """Memory of a version's sessions when all of their slots are full."""
    if not sessions:
        return 0
    return sessions["slots"] * sessions["positions"] * layout.row_bytes
