"""An exported SavedModel in this process. Needs TensorFlow (``optserve[serve]``)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...models.quiet import import_tensorflow
from ..errors import Cancelled, InvalidRequest, MalformedReply, ServerError
from ..model_dir import SAVED_MODEL_FILE, version_folders, version_of
from .base import Call, Reply, Transport, check_call


class LocalTransport(Transport):
    """Runs signatures of one version of an export.

    ``threads`` limits TensorFlow's threads inside one operation; it can be set once
    in a process, before TensorFlow has run anything. A call that runs can't be
    interrupted: its ``timeout`` is checked by the next one.

    Args:
        path: a base folder with numbered versions (the newest is taken), or a version.
        threads: threads inside one operation; None leaves TensorFlow's choice.

    Raises:
        InvalidRequest: no SavedModel there.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None
    ) -> None:
        folder, self._version = _version_folder(Path(path))
        import_tensorflow()
        import tensorflow as tf

        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        self._tf: Any = tf
        self._loaded: Any = tf.saved_model.load(str(folder))
        self._lock = threading.Lock()
        self._closed = False

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one signature."""
        begin = time.perf_counter()
        function = self._function(call)
        tf = self._tf
        inputs = {name: tf.constant(np.asarray(x)) for name, x in call.inputs.items()}
        try:
            made = function(**inputs)
        except (TypeError, ValueError, tf.errors.OpError) as error:
            text = " ".join(str(error).split())[:500]
            code = getattr(error, "error_code", None)
            name = "INVALID_ARGUMENT" if code in (None, 3) else "INTERNAL"
            raise ServerError(f"signature {call.signature!r}: {text}", name) from None
        wanted = call.outputs or tuple(made)
        if missing := [name for name in wanted if name not in made]:
            raise MalformedReply(
                f"signature {call.signature!r} has no output {missing[0]!r}: "
                f"it has {', '.join(sorted(made))}"
            )
        outputs = {name: made[name].numpy() for name in wanted}
        seconds = time.perf_counter() - begin
        return Reply(outputs, version=self._version, seconds=seconds, target="local")

    def close(self) -> None:
        """Let go of the model."""
        with self._lock:
            self._closed = True
            self._loaded = None

    def _function(self, call: Call) -> Any:
        with self._lock:
            if self._closed:
                raise Cancelled("this transport is closed")
            check_call(call, self._version, self._loaded.signatures)
            return self._loaded.signatures[call.signature]


def _version_folder(path: Path) -> tuple[Path, int]:
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
