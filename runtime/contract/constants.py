"""Versions, dtypes and limits that several modules share."""

from __future__ import annotations

from ...models.generation.sampling import TOP_LOGPROBS as TOP_LOGPROBS

CONTRACT_VERSION = 2
SPOKEN_VERSIONS = (1, 2)
"""Contract versions of exports that a client can drive."""

CACHE_DTYPES = ("float32", "bfloat16", "int8")
WEIGHT_DTYPES = ("float32", "bfloat16", "float16", "int8")
"""Dtypes of the matrices in a SavedModel."""

MESSAGE_LIMIT = 2**31 - 1
"""Bytes of the largest message: protobuf and gRPC go no further, and a flatbuffer
(a TFLite file's graph) has offsets of 32 bits."""

MANIFEST_LIMIT = 16 * 1024**2
"""Bytes of the largest manifest that is read."""

INT32_LIMIT = 2**31 - 1
"""The largest size or token id: the contract's integers are int32."""

ROWS_LIMIT = 4096
"""Rows of the largest batch that an export may name. A client pads its calls to it."""

FOUND_AT_LOAD = {
    "optserve_native_bfloat16": "products of bfloat16 by the processor itself",
    "optserve_exact_int8": "products of int8 by the processor itself",
}
"""What an export finds out about a processor when it is loaded: the names of the
variables, in one process for all versions, and what the answer decides."""
