"""gRPC channel arguments that client and server share."""

from __future__ import annotations

LONG_MESSAGES: dict[str, int] = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": 16 << 20,
}
"""A message is as long as its cache. The window holds a prompt's cache from the first
request on; while gRPC probes for one of its own, a call of a few megabytes takes much
longer."""
