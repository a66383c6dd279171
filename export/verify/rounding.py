"""What a type of weights loses, as float32 numbers: a source to compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np

from ...models.checkpoints import aligned
from ...models.config import OPTConfig
from ..int4 import BLOCK, pack, quantize_blocks, stored_dtype, unpack
from ..weights import by_blocks, is_matrix, quantize

Rounding = Callable[[str, np.ndarray], np.ndarray]
"""From a checkpoint's tensor, or rows of it, and its name to float32."""

_FLOATS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def exact(name: str, array: np.ndarray) -> np.ndarray:
    """As the checkpoint has it."""
    return np.asarray(array, np.float32)


def savedmodel_rounding(config: OPTConfig, dtype: str) -> Rounding:
    """What a SavedModel with weights of ``dtype`` holds (``export/weights``)."""
    if dtype == "float32":
        return exact

    def rounded(name: str, array: np.ndarray) -> np.ndarray:
        array = exact(name, array)
        if not is_matrix(name):
            return array
        if not name.endswith("q_proj.weight"):
            return _rounded(array, stored_dtype(name, dtype))
        scale = np.float32(config.head_dim**-0.5)  # is within the query's weights
        return _rounded(array * scale, dtype) / scale

    return rounded


def tflite_rounding(dtype: str) -> Rounding:
    """What a TFLite file with weights of ``dtype`` holds (``tflite/weights``)."""
    if dtype == "float32":
        return exact
    return partial(_rounded_for_tflite, dtype)


def _rounded_for_tflite(dtype: str, name: str, array: np.ndarray) -> np.ndarray:
    array = exact(name, array)
    if not is_matrix(name):
        return array
    kind = stored_dtype(name, dtype)
    if kind != "int4":
        return _rounded(array, kind)
    values, scales = quantize_blocks(array)
    return values * scales.astype(np.float32).repeat(BLOCK, axis=1)


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "int4":
        return unpack(*pack(array))
    if dtype == "int8":
        values, scale = quantize(array)
        rounded = aligned(array.shape, np.dtype(np.float32))

        def block(rows: slice) -> None:
            np.multiply(values[rows], scale[rows, None], out=rounded[rows])

        by_blocks(block, values)
        return rounded
    return array.astype(_FLOATS[dtype]).astype(np.float32)
