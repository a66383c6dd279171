"""The dtypes of ``tensorflow/core/framework/types.proto`` and how they travel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .wire import FIXED32, FIXED64, LENGTH, VARINT


@dataclass(frozen=True)
class DType:
    """One row of ``types.proto``: number, name, and how its values travel.

    ``carrier`` is the numpy dtype of the raw bytes, ``field`` the typed field's
    number and ``wire`` that field's wire type.
    """

    number: int
    name: str
    carrier: str
    field: int
    wire: int


_TABLE = (
    DType(1, "float32", "<f4", 5, FIXED32),
    DType(2, "float64", "<f8", 6, FIXED64),
    DType(3, "int32", "<i4", 7, VARINT),
    DType(4, "uint8", "|u1", 7, VARINT),
    DType(5, "int16", "<i2", 7, VARINT),
    DType(6, "int8", "|i1", 7, VARINT),
    DType(7, "string", "|O", 8, LENGTH),
    DType(8, "complex64", "<c8", 9, FIXED32),
    DType(9, "int64", "<i8", 10, VARINT),
    DType(10, "bool", "|b1", 11, VARINT),
    DType(14, "bfloat16", "<u2", 13, VARINT),
    DType(17, "uint16", "<u2", 7, VARINT),
    DType(18, "complex128", "<c16", 12, FIXED64),
    DType(19, "float16", "<f2", 13, VARINT),
    DType(22, "uint32", "<u4", 16, VARINT),
    DType(23, "uint64", "<u8", 17, VARINT),
)
BY_NUMBER = {row.number: row for row in _TABLE}
BY_NAME = {row.name: row for row in _TABLE}

FIELD_WIRE = {row.field: row.wire for row in _TABLE if row.name != "string"}


def bfloat16() -> np.dtype | None:
    """numpy's bfloat16, if the ml_dtypes package is there."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)
