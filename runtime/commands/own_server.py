"""An embedded server in a process beside this one, for ``optserve gateway --model``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import OptserveError
from ..model_dir import SAVED_MODEL_FILE, version_of


class OwnServer:
    """A server that is starting, or ready. Its address is ``target``."""

    def __init__(self, process: subprocess.Popen[bytes], target: str) -> None:
        self._process, self.target = process, target
        self.is_ready = False

    def wait_until_ready(self) -> None:
        """Wait for the model; without a limit, for its log says how far it is.

        Raises:
            SystemExit: the server could not start, and has said why.
            OptserveError: it was killed.
        """
        assert self._process.stdout is not None
        self.is_ready = bool(self._process.stdout.readline())
        if not self.is_ready:
            if (code := self._process.wait()) >= 0:
                raise SystemExit(code)
            self.check()

    def on_end(self, function: Callable[[], None]) -> None:
        """Call this from a thread when the server's process has ended."""

        def wait() -> None:
            self._process.wait()
            function()

        threading.Thread(target=wait, daemon=True).start()

    def check(self) -> None:
        """Raise ``OptserveError`` if its process has ended."""
        code = self._process.poll()
        if code is not None:
            reason = f"with {code}" if code >= 0 else f"by signal {-code}"
            raise OptserveError(
                f"the model's server was ended {reason}: start it again, with more "
                "memory if the system ran out of it"
            )


@contextmanager
def own_server(
    path: Path, *, name: str, options: Sequence[str] = ()
) -> Generator[OwnServer, None, None]:
    """A server of this model, which is starting.

    Its process is its own, so that neither's Python waits for the other's. It ends with
    this process, however this one ends.

    Args:
        path: an export's base folder, whose newest version is served, or a version's.
        name: the model's name in requests.
        options: further ones of ``optserve serve``.

    Raises:
        OptserveError: it has ended by itself.
    """
    with TemporaryDirectory(prefix="optserve-") as folder, _sigterm_leaves():
        socket = os.path.join(folder, "socket")
        command = [sys.executable, "-m", "optserve.runtime.cli", "serve"]
        own = ["--name", name, "--socket", socket, "--until-stdin-ends"]
        with subprocess.Popen(
            [*command, *_folder(path), *own, *options],
            stdin=subprocess.PIPE,  # which ends where this block does
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us, who let callers end first
        ) as process:
            server = OwnServer(process, f"unix:{socket}")
            try:
                yield server
                server.check()
            finally:
                if not server.is_ready:
                    process.kill()


def _folder(path: Path) -> list[str]:
    """What to serve, in words of ``optserve serve``: a base folder, or one version."""
    if not (path / SAVED_MODEL_FILE).is_file():
        return [str(path)]
    version = path.resolve()
    return [str(version.parent), "--versions", str(version_of(version))]


@contextmanager
def _sigterm_leaves() -> Generator[None, None, None]:
    """SIGTERM leaves the block, so that nothing stays behind."""

    def leave(*_: object) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
