"""The models by name: looks for versions on disk, loads, swaps and ends them.

A new version is loaded and warmed up before the old one ends, so a model that serves
goes on serving; one that fails to load leaves the others alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..model_dir import SAVED_MODEL_FILE, version_folders
from .model_version import State, Version, fingerprint
from .servable import Servable
from .serving_error import (
    ServingError,
    failed_precondition,
    internal,
    invalid_argument,
    not_found,
)
from .settings import ModelOptions

log = logging.getLogger("optserve.server")

Loader = Callable[[str, int, Path], Servable]
"""Model name, version and its folder to a servable that is warm."""

THREAD_NAME = "optserve-versions"


class ModelManager:
    """Serves the newest versions of each model; polls for new ones."""

    def __init__(
        self,
        models: Mapping[str, ModelOptions],
        load: Loader,
        *,
        poll_seconds: float,
        stopping: threading.Event,
    ) -> None:
        """``load`` may raise anything; ``stopping`` tells it to give up."""
        self._load = load
        self._poll_seconds = poll_seconds
        self._options = dict(models)
        self._versions: dict[str, dict[int, Version]] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._reconcile = threading.Lock()  # one load or unload at a time
        self._stopping = stopping
        self._looked = threading.Event()
        self._failure: Exception | None = None
        self._poller = threading.Thread(
            target=self._poll, name=THREAD_NAME, daemon=True
        )

    def start(self, *, wait: bool) -> None:
        """Load what is there now, then go on looking in the background.

        All loading is done by a thread of its own: TensorFlow can't be interrupted, and
        whoever waits here can.

        Args:
            wait: until every model has a version that serves.
        """
        self._poller.start()
        self._looked.wait()
        if self._failure is not None:
            raise self._failure
        while wait and not all(self.available(name) for name in self._options):
            if self._stopping.wait(self._poll_seconds):
                return
        self._labels = {n: o.labels for n, o in self._options.items() if o.labels}

    def stop(self, *, seconds: float = 5.0) -> bool:
        """Stop looking, and end every version when its calls are done.

        Returns:
            False if a version was still loading after ``seconds``; it ends when
            TensorFlow has done with it.
        """
        self._stopping.set()
        if self._poller.is_alive():
            self._poller.join(seconds)
        return not self._poller.is_alive()

    def refresh(self) -> None:
        """Compare the folders with what is in memory, load and end accordingly."""
        with self._reconcile:
            for name in list(self._versions):
                if name not in self._options:
                    self._end(name, keep=())
            for name, options in list(self._options.items()):
                self._refresh_model(name, options)

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int | None, label: str = ""
    ) -> Iterator[tuple[int, Servable]]:
        """The version asked for, kept in memory until the block ends.

        Raises:
            ServingError: no such model, version or label.
        """
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        while True:
            number = self.labelled(name, label) if label else version
            known = self._find(name, number)
            with known.lease() as servable:
                if servable is not None:
                    yield known.number, servable
                    return
            moved = label and self.labelled(name, label) != number
            if number is not None and not moved:
                raise _missing(name, number)

    def labelled(self, name: str, label: str) -> int:
        """The version that a label stands for."""
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        return version

    def versions(self, name: str) -> list[Version]:
        """All versions of a model that ever were, newest first."""
        known = self._versions.get(name, {})
        return [known[number] for number in sorted(known, reverse=True)]

    def available(self, name: str) -> list[int]:
        """Versions that answer now, newest first."""
        return [v.number for v in self.versions(name) if v.state is State.AVAILABLE]

    @property
    def names(self) -> list[str]:
        """Names of the models configured."""
        return sorted(self._options)

    def reconfigure(self, models: Mapping[str, ModelOptions]) -> None:
        """Serve these models instead; returns when they are loaded.

        Raises:
            ServingError: a label names a version that doesn't serve, or a model that
                is new here couldn't be loaded.
        """
        for name, options in models.items():
            for version in options.labels.values():
                if version not in self.available(name):
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model "
                        f"{name}, which is not currently available for inference"
                    )
        new = [name for name in models if name not in self._options]
        with self._reconcile:
            self._options = dict(models)
            self._labels = {n: o.labels for n, o in models.items() if o.labels}
        self.refresh()
        failed = [name for name in new if not self.available(name)]
        if failed:
            reasons = ", ".join(f"{{{n}: {self.why_not(n)}}}" for n in failed)
            raise internal(
                f"{len(failed)} model(s) did not become available: {{{reasons}}}"
            )

    def why_not(self, name: str) -> str:
        """Why a model has no version that serves, in a sentence."""
        base_path = self._options[name].base_path
        errors = [v.error for v in self.versions(name) if v.error]
        if errors:
            return str(errors[0])
        if not Path(base_path).is_dir():
            return f"there is no folder {base_path}"
        if (Path(base_path) / SAVED_MODEL_FILE).exists():
            return (
                f"{base_path} is a SavedModel itself: give the folder above it, whose "
                "folders are versions named by numbers"
            )
        return (
            f"{base_path} has no version to serve: expected folders named by "
            "numbers (1, 2, …) with a saved_model.pb in each"
        )

    def _find(self, name: str, version: int | None) -> Version:
        known = self._versions.get(name, {})
        if version is not None:
            if version not in known:
                raise _missing(name, version)
            return known[version]
        available = self.available(name)
        if not available:
            raise not_found(f"Servable not found for request: Latest({name})")
        return known[available[0]]

    def _poll(self) -> None:
        try:
            self.refresh()
        except Exception as error:  # a mistake of ours: `start` raises it
            self._failure = error
        self._looked.set()
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.refresh()
            except Exception:
                log.exception("looking for new versions failed")
        with self._reconcile:
            for versions in self._versions.values():
                for version in versions.values():
                    version.unload()

    def _refresh_model(self, name: str, options: ModelOptions) -> None:
        try:
            folders = version_folders(options.base_path, missing_ok=False)
        except OSError:  # not there yet, or a file system that comes back
            return
        chosen = options.policy.choose(list(folders))
        for number in sorted(chosen):  # the newest last: it takes over when ready
            if self._stopping.is_set():
                return
            self._ensure_loaded(name, number, folders[number])
        serving = self.available(name)
        if any(number in chosen for number in serving) or not chosen:
            self._end(name, keep=chosen)

    def _ensure_loaded(self, name: str, number: int, folder: Path) -> None:
        known = self._versions.setdefault(name, {})
        old = known.get(number)
        if old is not None and old.state is not State.END:
            return
        mark = fingerprint(folder)
        if old is not None and old.error and old.fingerprint == mark:
            return
        version = Version(number, State.LOADING, fingerprint=mark)
        self._versions[name] = {**known, number: version}
        begin = time.monotonic()
        about = {"model": name, "version": number}
        log.info(
            "version %d of model %s: loading %s", number, name, folder, extra=about
        )
        try:
            version.servable = self._load(name, number, folder)
        except Exception as error:  # whatever a broken version makes TensorFlow raise
            version.fail(error)
            log.error(
                "version %d of model %s: %s",
                *(number, name, version.error),
                extra=about,
            )
        else:
            version.state = State.AVAILABLE
            seconds = round(time.monotonic() - begin, 3)
            log.info(
                "version %d of model %s serves after %.1f s",
                *(number, name, seconds),
                extra=about | {"seconds": seconds},
            )

    def _end(self, name: str, keep: tuple[int, ...] | list[int]) -> None:
        for version in self.versions(name):
            if version.state is State.AVAILABLE and version.number not in keep:
                version.unload()
                log.info("version %d of model %s ended", version.number, name)


def _missing(name: str, version: int) -> ServingError:
    return not_found(f"Servable not found for request: Specific({name}, {version})")
