"""Shared fixtures: checkpoints that Transformers wrote, and small data."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from optserve.export.subprocesses import peak_memory
from optserve.runtime.memory import release_freed_memory, resident_bytes

# Fixed examples, so that a run passes or fails like the one before it.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, max_examples=150
)
# `make explore`: new examples each time; failures are kept and tried again first.
settings.register_profile("explore", deadline=None, max_examples=3000)
settings.load_profile("fixed")

DATA = Path(__file__).parent / "data"
SHARED_FOLDER = "OPTSERVE_TESTS_FOLDER"
"""Environment variable with the folder of what the workers of a run share."""


def pytest_configure(config):
    """Make the folder, in the process that starts the workers.

    Ctrl-C reaches the tests and what they start, also in a shell's background job.
    """
    gc.disable()  # until everything is imported
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if SHARED_FOLDER not in os.environ:
        folder = tempfile.mkdtemp(prefix="optserve-tests-")
        os.environ[SHARED_FOLDER] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop(SHARED_FOLDER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As ``--dist loadfile``, but that a server which files share is started once."""
    from xdist.scheduler import LoadFileScheduling

    class LoadSharedServers(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = file.rpartition("/")[0]
            return folder if folder == "tests/runtime/serving" else file

    if config.getvalue("dist") == "loadfile":
        return LoadSharedServers(config, log)
    return None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """``tests/data``."""
    return DATA


def pytest_collection_finish() -> None:
    """What imports made stays: 400,000 objects that no collection looks at again.

    Tracing a graph makes as many, all of them in use, so that looking among them often
    finds nothing; the end of a file does.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Release what a test, or its file, has compiled and loaded.

    Programs that tests share have to be compiled again then, which may be a quarter of
    a file's time: so within a file only where it takes very much.
    """
    last_of_file = nextitem is None or nextitem.path != item.path
    if resident_bytes() < _sizes[-1] + (50 << 20 if last_of_file else 800 << 20):
        return
    if "jax" in sys.modules:
        import jax

        jax.clear_caches()
    gc.collect()
    if last_of_file:
        gc.freeze()  # what is left is what later files use: caches, lazy imports
    release_freed_memory()
    _sizes.append(resident_bytes())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Each worker tells its largest resident size, and goes without looking for
    garbage in what it leaves: pytest would do so five times."""
    gc.freeze()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_bytes"] = peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Collects them."""
    if output := getattr(node, "workeroutput", None):
        _peaks.append(output["peak_bytes"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """And says them."""
    if _peaks:
        sizes = ", ".join(f"{peak / 1e9:.1f}" for peak in _peaks)
        terminalreporter.write_line(f"peak memory of the workers: {sizes} GB")


_peaks: list[int] = []
_sizes = [0]
"""Bytes that this process held when it had released what it could."""
