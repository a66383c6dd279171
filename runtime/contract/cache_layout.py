"""How one token's keys and values travel."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .constants import CACHE_DTYPES

_NUMBERS_PER_FLOAT32 = {"float32": 1, "bfloat16": 2, "int8": 4}


@dataclass(frozen=True)
class CacheLayout:
    """Sizes of one cache row and how its numbers travel.

    ``dtype`` names what a number is stored as:

    - ``float32``: ``[L, 2, H, D]``;
    - ``bfloat16``: pairs bitcast to float32, ``[L, 2, H, D/2]`` (the server's default
      reply encoding would turn 16-bit floats into variable-length integers);
    - ``int8``: fours bitcast to float32, followed by the float32 scale of the head's
      vector (value = integer · scale), ``[L, 2, H, D/4 + 1]``.

    The array on the wire is float32 in all three.

    Raises:
        ValueError: an unknown dtype, or a head size that it does not divide.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_DTYPES:
            raise ValueError(
                f"the cache dtype should be one of {', '.join(CACHE_DTYPES)}, "
                f"got {self.dtype!r}"
            )
        group = _NUMBERS_PER_FLOAT32[self.dtype]
        if self.head_dim % group:
            raise ValueError(
                f"a {self.dtype} cache needs a head size divisible by {group}, "
                f"got {self.head_dim}"
            )

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """Shape of one token's row on the wire, float32."""
        width = self.head_dim // _NUMBERS_PER_FLOAT32[self.dtype]
        if self.dtype == "int8":
            width += 1  # the scale
        return (self.layers, 2, self.heads, width)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row on the wire."""
        return 4 * prod(self.row_shape)
