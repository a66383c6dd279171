"""The reference of the public names as pages, made of their docstrings by pdoc.

python tests/make_docs.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

PACKAGES = ("optserve.models", "optserve.export", "optserve.runtime")


def make_docs(folder: Path) -> None:
    """Write the pages. Raises ``UserWarning`` for a public name that is not there."""
    for package in map(import_module, PACKAGES):
        for name in getattr(package, "__all__", ()):  # some are imported when used
            setattr(package, name, getattr(package, name))
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*does not resolve")
        pdoc.pdoc(*PACKAGES, output_directory=folder)


if __name__ == "__main__":
    make_docs(Path(sys.argv[1]))
