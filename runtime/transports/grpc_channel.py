"""Channels and credentials, the same for grpc and grpc.aio."""

from __future__ import annotations

import json
from typing import Any

import grpc

from ..contract import MESSAGE_LIMIT
from ..grpc_options import LONG_MESSAGES
from .addresses import is_local
from .connection import Connection
from .status_mapping import Outcome

_REPLY_LIMITS = (4 << 20, 32 << 20, 256 << 20, MESSAGE_LIMIT)

_COMPRESSION = {
    None: None,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}


def reply_limit(most_bytes: int) -> int:
    """The limit of the channel for calls whose replies may have so many bytes.

    gRPC has one limit for all calls of a channel, decompressed replies included, so
    there is a channel for each of a few sizes.
    """
    return next(limit for limit in _REPLY_LIMITS if most_bytes <= limit)


def open_channel(api: Any, target: str, connection: Connection, limit: int) -> Any:
    """A channel of ``api`` (grpc or grpc.aio); connects when first used.

    Args:
        api: the module.
        target: the address.
        connection: the options.
        limit: bytes of the longest reply that is received.

    Raises:
        InvalidRequest: the TLS files can't be read.
    """
    options = channel_arguments(connection, limit)
    if is_local(target):  # http_proxy leads nowhere for this machine
        options.append(("grpc.enable_http_proxy", 0))
    compression = _COMPRESSION[connection.compression]
    if connection.tls is None:
        return api.insecure_channel(target, options, compression)
    credentials = grpc.ssl_channel_credentials(*connection.tls.load())
    return api.secure_channel(target, credentials, options, compression)


def channel_arguments(
    connection: Connection, limit: int
) -> list[tuple[str, str | int]]:
    """gRPC's channel arguments for the options.

    Retrying is ours: gRPC's own stops at its buffer of 256 KiB per call. Connections
    are not shared with other channels, so that one's back-off doesn't slow another.
    """
    arguments: dict[str, str | int] = {
        **LONG_MESSAGES,
        "grpc.max_receive_message_length": limit,
        "grpc.enable_retries": 0,
        "grpc.use_local_subchannel_pool": 1,
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
        # the time that one attempt to connect gets
        "grpc.min_reconnect_backoff_ms": int(1000 * max(connection.retry.connect, 1)),
        "grpc.primary_user_agent": connection.user_agent,
        # a name with several addresses, as dns:///… of a headless service
        "grpc.service_config": json.dumps(
            {"loadBalancingConfig": [{"round_robin": {}}]}
        ),
    }
    if connection.keepalive:
        timeout_ms = int(1000 * connection.keepalive.timeout)
        arguments["grpc.keepalive_time_ms"] = int(1000 * connection.keepalive.interval)
        arguments["grpc.keepalive_timeout_ms"] = timeout_ms
        # the one that newer releases heed (60 s otherwise)
        arguments["grpc.http2.ping_timeout_ms"] = timeout_ms
    if connection.tls and connection.tls.server_name:
        arguments["grpc.ssl_target_name_override"] = connection.tls.server_name
    arguments.update(connection.channel_options)
    return list(arguments.items())


def outcome_of(error: Any) -> Outcome:
    """A failed call's status, from ``grpc.RpcError`` or ``grpc.aio.AioRpcError``."""
    return Outcome(error.code().name, error.details() or "")
