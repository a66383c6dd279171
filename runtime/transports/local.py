"""An exported SavedModel in this process. Needs TensorFlow (``optserve[serve]``)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.quiet import import_tensorflow
from ..codec import ModelSpec, PredictRequest
from ..errors import Cancelled, IncompatibleModel, InvalidRequest, ServerError
from ..memory import on_huge_pages
from ..model_dir import SAVED_MODEL_FILE, version_folders, version_of
from .base import Call, Reply, Transport, check_call

if TYPE_CHECKING:
    from ..server.servable import Servable


class LocalTransport(Transport):
    """Runs signatures of one version of an export, loaded as the embedded server does.

    A call that runs can't be interrupted: its ``timeout`` is checked by the next one.

    Args:
        path: a base folder with numbered versions (the newest is taken), or a version.
        threads: threads inside one operation; None leaves TensorFlow's choice. The
            first model that a process loads decides for all.

    Raises:
        InvalidRequest: no SavedModel there.
        IncompatibleModel: files that were changed since the export, or can't be loaded.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None
    ) -> None:
        folder, self._version = version_folder(Path(path))
        self._lock = threading.Lock()
        self._servable: Servable | None = _load(folder, threads)
        self._running = 0
        self._closed = False

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one signature."""
        from ..server.predict import predict, run_directly
        from ..server.serving_error import ServingError

        begin = time.perf_counter()
        servable = self._begin(call)
        inputs = {name: np.asarray(x) for name, x in call.inputs.items()}
        request = PredictRequest(ModelSpec("", call.signature), inputs, call.outputs)
        try:
            _, outputs = predict(servable, request, run_directly)
        except ServingError as error:
            raise ServerError(
                f"signature {call.signature!r}: {error.details}", error.code.name
            ) from None
        finally:
            self._end()
        seconds = time.perf_counter() - begin
        return Reply(outputs, version=self._version, seconds=seconds, target="local")

    def close(self) -> None:
        """Let go of the model, once the calls that run have ended."""
        with self._lock:
            self._closed = True
            self._release()

    def _begin(self, call: Call) -> Servable:
        with self._lock:
            if self._closed or self._servable is None:
                raise Cancelled("this transport is closed")
            check_call(call, self._version, self._servable.signatures)
            self._running += 1
            return self._servable

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
            self._release()

    def _release(self) -> None:
        """Free the memory of a closed transport where nothing runs any more."""
        if self._closed and not self._running and self._servable is not None:
            self._servable.close()
            self._servable = None


def _load(folder: Path, threads: int | None) -> Servable:
    import_tensorflow()
    from ..server.loading import checked_manifest
    from ..server.servable import Servable
    from ..server.serving_error import ServingError
    from ..server.settings import SessionOptions

    try:
        manifest = checked_manifest(folder)
        with on_huge_pages():  # the weights
            options = SessionOptions(intra_op_threads=threads or 0)
            return Servable(str(folder), options, manifest=manifest)
    except ServingError as error:
        raise IncompatibleModel(f"{folder} can't be loaded: {error.details}") from None


def version_folder(path: Path) -> tuple[Path, int]:
    """The SavedModel's folder and its version, of a base folder or a version's own."""
    if (path / SAVED_MODEL_FILE).is_file():
        return path, version_of(path)
    for version, folder in version_folders(path).items():
        if (folder / SAVED_MODEL_FILE).is_file():
            return folder, version
    raise InvalidRequest(
        f"{path} holds no exported model: expected numbered version folders with a "
        "saved_model.pb, as `optserve export` writes them"
    )
