"""Compressed requests, inflated only as far as a request may go.

gRPC would inflate a message before anyone can ask how large it becomes: half a megabyte
of gzip grows to two gigabytes. So the server takes messages as they came
(``grpc.per_message_decompression`` 0) and inflates them here.
"""

from __future__ import annotations

import zlib

import grpc

from .serving_error import ServingError, internal

INFLATED_LIMIT = 256 << 20
"""Bytes that a compressed request may have when it is inflated."""

_GZIP, _ZLIB_METHOD = b"\x1f\x8b", 0x78
_EITHER_FORMAT = 32 + zlib.MAX_WBITS


def is_compressed(data: bytes) -> bool:
    """Whether a message is gzip or zlib (gRPC's "deflate") data.

    No request of ours starts like that: 0x1f is not a protobuf tag, and 0x78 would be
    field 15, which none of the messages has.
    """
    if data[:2] == _GZIP:
        return True
    return (
        data[:1] == bytes([_ZLIB_METHOD])
        and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950, FCHECK
    )


def inflated(data: bytes, *, limit: int = INFLATED_LIMIT) -> bytes:
    """The message, inflated if it came compressed.

    Raises:
        ServingError: RESOURCE_EXHAUSTED it has more than ``limit`` bytes; INTERNAL it
            is damaged.
    """
    if not is_compressed(data):
        return data
    inflater = zlib.decompressobj(_EITHER_FORMAT)
    try:
        message = inflater.decompress(data, limit)
    except zlib.error:
        raise internal("the compressed request is damaged") from None
    if not inflater.eof and inflater.unconsumed_tail:
        raise ServingError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"Received message larger than max: the request has more than {limit} "
            "bytes when inflated; send it without compression",
        )
    if not inflater.eof:
        raise internal("the compressed request is damaged: it ends too early")
    return message
