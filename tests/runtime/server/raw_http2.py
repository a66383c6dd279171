"""An HTTP/2 client that does what no gRPC client does: half of what it should."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


class RawConnection:
    """One connection to ``127.0.0.1:port``; what comes is not read.

    Args:
        target: the address.
        window: bytes of a reply that the server may send before it has to wait.
    """

    def __init__(self, target: str, *, window: int = 65535) -> None:
        host, port = target.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)))
        self._stream = -1
        self._target = target
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, window)
        self._socket.sendall(PREFACE + _frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def begin(self, method: str, *, timeout: str = "") -> int:
        """Send the headers of a call; its stream's number."""
        self._stream += 2
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self._target),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        headers += [("grpc-timeout", timeout)] if timeout else []
        block = b"".join(_literal(name, value) for name, value in headers)
        self._socket.sendall(_frame(HEADERS, END_HEADERS, self._stream, block))
        return self._stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Some bytes of a call's message, in frames."""
        for start in range(0, max(len(data), 1), 16384):
            part = data[start : start + 16384]
            last = end and start + 16384 >= len(data)
            self._socket.sendall(_frame(DATA, END_STREAM * last, stream, part))

    def call(self, method: str, message: bytes) -> int:
        """A whole call, whose reply nobody reads."""
        stream = self.begin(method)
        self.send(stream, framed(message), end=True)
        return stream


def framed(message: bytes, *, promised: int | None = None) -> bytes:
    """A message after gRPC's five bytes, which may promise another length."""
    length = len(message) if promised is None else promised
    return struct.pack(">BI", 0, length) + message


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = struct.pack(">I", len(payload))[1:]
    return size + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header without Huffman coding or a table (RFC 7541, 6.2.3)."""
    texts = (name.encode(), value.encode())
    return b"\x10" + b"".join(bytes([len(text)]) + text for text in texts)
