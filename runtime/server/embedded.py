"""The embedded server: models behind a gRPC port or a Unix socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from ..errors import OptserveError
from ..transports.grpc_channel import LONG_MESSAGES
from .address import Address
from .batching import Batcher
from .loading import load
from .manager import ModelManager
from .predict import run_directly
from .servable import Servable
from .services import Services
from .settings import (
    BatchingParameters,
    ModelOptions,
    SessionOptions,
    TlsOptions,
    VersionPolicy,
)

_CALL_THREADS = 64


class EmbeddedServer:
    """TensorFlow Serving's protocol from this process; serves once constructed.

    Args:
        base_path: folder that holds numbered version folders. None with ``models``.
        name: the model's name in requests.
        port: TCP port; 0 picks a free one.
        host: address to listen at.
        socket: path of a Unix socket to listen at instead of a port.
        models: several models by name, instead of ``base_path`` and ``name``.
        versions: which versions to serve.
        tensor_content: reply in ``tensor_content`` instead of typed fields.
        batching: merge concurrent requests (None: each one runs by itself).
        tls: encrypt, and ask clients for certificates if so configured.
        session: TensorFlow's threads and XLA.
        poll_seconds: how often to look for new version folders.
        wait_for_model: wait until each model has a version, rather than fail.

    Raises:
        OptserveError: a model can't be loaded, or the address can't be had.
    """

    def __init__(
        self,
        base_path: str | os.PathLike[str] | None = None,
        *,
        name: str = "opt",
        port: int = 0,
        host: str = "127.0.0.1",
        socket: str | os.PathLike[str] | None = None,
        models: Mapping[str, ModelOptions] | None = None,
        versions: VersionPolicy | None = None,
        tensor_content: bool = False,
        batching: BatchingParameters | None = None,
        tls: TlsOptions | None = None,
        session: SessionOptions | None = None,
        poll_seconds: float = 2.0,
        wait_for_model: bool = False,
    ) -> None:
        if (base_path is None) == (models is None):
            raise ValueError("give either base_path or models")
        if base_path is not None:
            policy = versions or VersionPolicy()
            models = {name: ModelOptions(os.fspath(base_path), policy)}
        assert models is not None
        options = session or SessionOptions()
        run = run_directly if batching is None else Batcher(batching)

        def load_version(folder: Path) -> Servable:
            return load(folder, options, run)

        address = Address(host, port, socket)
        address.check()
        self.manager = ModelManager(models, load_version, poll_seconds=poll_seconds)
        try:
            self.manager.start(wait=wait_for_model)
            self._require_models()
            services = Services(self.manager, run, tensor_content=tensor_content)
            self._server = grpc.server(
                ThreadPoolExecutor(_CALL_THREADS, "optserve-call"),
                handlers=services.handlers(),
                options=[*LONG_MESSAGES.items(), ("grpc.so_reuseport", 0)],
            )
            address.bind(self._server, tls)
        except BaseException:
            self.manager.stop()
            raise
        self._address = address
        self._server.start()

    @property
    def target(self) -> str:
        """What a client connects to: ``host:port`` or ``unix:/path``."""
        return self._address.target

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout`` came first."""
        return not self._server.wait_for_termination(timeout)

    def stop(self, grace: float | None = 5.0) -> None:
        """Refuse new calls, give those under way ``grace`` seconds, free all.

        Calls cut off then still end in TensorFlow, which can't be interrupted, before
        the models are freed. Stopping twice does no harm.
        """
        self._server.stop(grace).wait()
        self.manager.stop()
        self._address.release()

    def models(self) -> dict[str, dict[str, list]]:
        """What serves now: for each model its ``versions`` and ``signatures``.

        Versions newest first; signatures of the newest, sorted.
        """
        found: dict[str, dict[str, list]] = {}
        for name in self.manager.names:
            with self.manager.lease(name, None) as (_, servable):
                signatures = sorted(s for s in servable.signatures if s[:2] != "__")
            versions = self.manager.available(name)
            found[name] = {"versions": versions, "signatures": signatures}
        return found

    def _require_models(self) -> None:
        for name in self.manager.names:
            if not self.manager.available(name):
                raise OptserveError(
                    f"model {name} cannot be served: {self.manager.why_not(name)}"
                )
