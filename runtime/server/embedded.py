"""The embedded server: models behind a gRPC port or a Unix socket."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from ..errors import OptserveError
from .address import Address
from .batching import Batcher
from .grpc_front import GrpcFront, Limits
from .loading import VersionLoader
from .manager import ModelManager
from .memory_watch import MemoryWatch
from .predict import run_directly
from .services import Services
from .settings import (
    BatchingParameters,
    ModelOptions,
    SessionOptions,
    TlsOptions,
    VersionPolicy,
)


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
        batching: batch concurrent requests (None: each one runs by itself).
        tls: encrypt, and ask clients for certificates if so configured.
        session: TensorFlow's threads and XLA.
        poll_seconds: how often to look for new version folders.
        wait_for_model: wait until each model has a version, rather than fail.
        allow_reload: let callers change what is served (HandleReloadConfigRequest).
            Only where strangers can't call: at a loopback address, a Unix socket, or
            with client certificates.

    Raises:
        OptserveError: a model can't be loaded, the address can't be had, or
            ``allow_reload`` where strangers can call.
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
        allow_reload: bool = False,
    ) -> None:
        if (base_path is None) == (models is None):
            raise ValueError("give either base_path or models")
        if not 0 < poll_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"poll_seconds must be above 0, got {poll_seconds}")
        if base_path is not None:
            policy = versions or VersionPolicy()
            models = {name: ModelOptions(os.fspath(base_path), policy)}
        assert models is not None
        self._address = Address(host, port, socket)
        verified = tls is not None and tls.client_verify
        if allow_reload and not (self._address.is_local or verified):
            raise OptserveError(
                "reloading may be allowed at a loopback address, at a Unix socket or "
                f"with client certificates, not at {self._address.target}: whoever can "
                "call could load any model of this machine"
            )
        run = run_directly if batching is None else Batcher(batching)
        stopping = threading.Event()
        load = VersionLoader(session or SessionOptions(), run, stopping)
        self.manager = ModelManager(
            models, load, poll_seconds=poll_seconds, stopping=stopping
        )
        services = Services(
            self.manager, run, tensor_content=tensor_content, allow_reload=allow_reload
        )
        self._front = GrpcFront(services.methods(), Limits())
        self._memory = MemoryWatch(self._front.workers, stopping)
        try:
            self._address.claim()
            self.manager.start(wait=wait_for_model)
            self._require_models()
            self._front.start(self._address, tls)
        except BaseException:
            self.manager.stop(seconds=1.0)
            self._address.release()
            raise
        self._memory.start()

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
        return self._front.wait(timeout)

    def stop(self, grace: float | None = 5.0) -> bool:
        """Refuse new calls, give those under way ``grace`` seconds, free all.

        Calls cut off then still end in TensorFlow, which can't be interrupted, before
        the models are freed. Stopping twice does no harm.

        Returns:
            False if a new version was still loading; its memory is freed when
            TensorFlow has done with it.
        """
        self._front.stop(grace)
        ended = self.manager.stop()
        self._address.release()
        return ended

    def models(self) -> dict[str, dict[str, list]]:
        """What serves now: for each model its ``versions`` and ``signatures``.

        Versions newest first; signatures of the newest, sorted.
        """
        serving: dict[str, dict[str, list]] = {}
        for name in self.manager.names:
            with self.manager.lease(name, None) as (_, servable):
                signatures = sorted(s for s in servable.signatures if s[:2] != "__")
            versions = self.manager.available(name)
            serving[name] = {"versions": versions, "signatures": signatures}
        return serving

    def _require_models(self) -> None:
        for name in self.manager.names:
            if not self.manager.available(name):
                raise OptserveError(
                    f"model {name} cannot be served: {self.manager.why_not(name)}"
                )
