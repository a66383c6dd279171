"""What a server is told: models, batching, TensorFlow's threads, TLS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

_MOST_THREADS = 1024  # TensorFlow ends the process when it can't have them
_LONGEST_BATCH_WAIT = 3_600_000_000  # microseconds


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the numbered version folders are served.

    ``versions`` names them; else the ``latest`` newest ones; 0 means all.
    """

    latest: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, versions: list[int]) -> list[int]:
        """Those of ``versions`` to serve, newest first."""
        newest_first = sorted(versions, reverse=True)
        if self.versions:
            return [v for v in newest_first if v in self.versions]
        return newest_first[: self.latest] if self.latest else newest_first

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """``all``, ``latest``, ``latest:N``, or numbers separated by commas.

        Raises:
            ValueError: anything else.
        """
        if text == "all":
            return cls(latest=0)
        try:
            if text.startswith("latest"):
                count = int(text.removeprefix("latest").removeprefix(":") or 1)
                if count > 0:
                    return cls(latest=count)
            else:
                versions = tuple(int(part) for part in text.split(","))
                if all(version >= 0 for version in versions):
                    return cls(versions=versions)
        except ValueError:
            pass
        raise ValueError(
            "versions should be all, latest, latest:N, or numbers separated by "
            f"commas, got {text!r}"
        )


@dataclass(frozen=True)
class ModelOptions:
    """One model to serve: its folder of numbered versions and what to serve of it."""

    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchingParameters:
    """Dynamic batching of concurrent requests, TensorFlow Serving's names and defaults.

    A batch closes when it holds ``max_batch_size`` rows, or when a thread is free and
    its first request has waited ``batch_timeout_micros``.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not 0 <= self.batch_timeout_micros <= _LONGEST_BATCH_WAIT:
            raise ValueError(
                f"batch_timeout_micros must be from 0 to {_LONGEST_BATCH_WAIT} (an "
                f"hour), got {self.batch_timeout_micros}"
            )
        sizes = self.allowed_batch_sizes
        if sizes and (
            list(sizes) != sorted(set(sizes)) or sizes[-1] != self.max_batch_size
        ):
            raise ValueError(
                "allowed_batch_sizes must increase and end with max_batch_size "
                f"({self.max_batch_size}), got {list(sizes)}"
            )

    def padded_rows(self, rows: int) -> int:
        """The smallest allowed batch size that holds ``rows``."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


@dataclass(frozen=True)
class SessionOptions:
    """How TensorFlow runs a model; 0 threads means one for each core.

    ``intra_op_threads`` share the work of one op. ``inter_op_threads`` is how many ops
    run at a time: 1 means one of each request, in the request's own thread.
    """

    intra_op_threads: int = 0
    inter_op_threads: int = 1
    xla_cpu_compilation_enabled: bool = True

    def __post_init__(self) -> None:
        for name in ("intra_op_threads", "inter_op_threads"):
            if not 0 <= getattr(self, name) <= _MOST_THREADS:
                raise ValueError(
                    f"{name} must be from 0 (one for each core) to {_MOST_THREADS}, "
                    f"got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class TlsOptions:
    """PEM texts of an encrypted port; ``client_verify`` asks clients for theirs."""

    server_key: bytes = field(repr=False)
    server_cert: bytes
    custom_ca: bytes = b""
    client_verify: bool = False
