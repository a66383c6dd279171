"""``optserve bench``: ours against the peers; it lives with the tests, in a clone."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from ..errors import OptserveError

FOLDER = Path(__file__).parents[2] / "tests"
"""Where a clone has the package ``benchmarks``."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    _benchmarks().configure(parser)


def run(args: argparse.Namespace) -> int:
    """Measure. Returns 1 if an engine failed."""
    return _benchmarks().run(args)


def _benchmarks() -> ModuleType:
    if not (FOLDER / "benchmarks" / "command.py").exists():
        raise OptserveError(
            "optserve bench runs from a clone of the repository: install it there with "
            "pip install -e '.[bench]'"
        )
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module("benchmarks.command")
