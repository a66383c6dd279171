"""How a TFLite file stores a checkpoint's weights.

    float32, float16   as they are; the delegate makes float32 of float16 at load
    int8               a float32 scale for each row of a matrix
    int4               a float16 scale for each 32 numbers of a row, in the layers;
                       the token table and the head, where it costs most, as int8

Biases, norms and the position table are float32 in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from ...models.config import OPTConfig
from ...models.weights import weight_shapes
from ..int4 import quantize_blocks, require_blocks, stored_dtype
from ..weights import quantize
from .graph import SCALE, is_matrix
from .writer import Constant


def constants(
    config: OPTConfig, stored: Mapping[str, np.ndarray], dtype: str
) -> Iterator[tuple[str, Constant]]:
    """The file's weights by name; each is computed when it is written.

    Quantised ones are computed twice, now for their scales, for memory to stay at one.

    Raises:
        ExportError: matrices that int4 does not divide.
    """
    for name, shape in weight_shapes(config).items():
        count = int(np.prod(shape))
        kind = stored_dtype(name, dtype) if is_matrix(name, shape) else "float32"
        if kind.startswith("float"):
            nbytes = count * np.dtype(kind).itemsize
            yield name, Constant(kind, nbytes, partial(_cast, stored, name, kind))
        elif kind == "int8":
            scale = quantize(stored[name])[1]
            yield name, Constant(kind, count, partial(_int8, stored, name), scale)
            if name == "decoder.embed_tokens.weight":
                yield name + SCALE, Constant("float32", scale.nbytes, scale.copy)
        else:
            require_blocks(name, shape[1])
            scale = quantize_blocks(stored[name])[1]
            read = partial(_int4, stored, name)
            yield name, Constant(kind, count // 2, read, scale)
            yield name + SCALE, Constant("float16", scale.nbytes, scale.copy)


def _cast(stored: Mapping[str, np.ndarray], name: str, kind: str) -> np.ndarray:
    return np.asarray(stored[name]).astype(kind, copy=False)


def _int8(stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return quantize(stored[name])[0]


def _int4(stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Two numbers in a byte, the first one in the lower half."""
    nibbles = quantize_blocks(stored[name])[0].reshape(-1).view(np.uint8) & 15
    return nibbles[0::2] | nibbles[1::2] << 4
