"""A full disk: found before the work, or said in a sentence where it fills up."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.config import OPTConfig
from .errors import ExportError
from .footprint import GIB, tflite_bytes, weights_bytes
from .options import ExportOptions

_REASONS = {
    number: os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # or a limit is reached
}


def check_room(
    out: str | os.PathLike[str], config: OPTConfig, options: ExportOptions
) -> None:
    """Refuse an export whose weights alone have no room.

    Raises:
        ExportError: less is free where ``out`` is, or will be.
    """
    count = {"savedmodel": weights_bytes, "tflite": tflite_bytes}[options.target]
    needed = count(config.to_dict(), options.weights)
    free = free_bytes(out)
    if free is not None and free < needed:
        raise ExportError(
            f"{out} has room for {free / GIB:.2f} GiB, and the weights alone take "
            f"{needed / GIB:.2f} GiB: free some, or choose another folder"
        )


def free_bytes(folder: str | os.PathLike[str]) -> int | None:
    """Free bytes where a folder is, or will be; None if unknown."""
    folder = Path(folder).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


@contextmanager
def full_disk_explained(folder: str | os.PathLike[str]) -> Iterator[None]:
    """What libraries raise on a full disk becomes one sentence.

    TensorFlow has the system's reason only in an error's text.

    Raises:
        ExportError: writing below ``folder`` failed for want of room.
    """
    try:
        yield
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise ExportError(
            f"nothing published: writing to {folder} failed ({reason.lower()}); free "
            "some room, or choose another folder"
        ) from error


def _reason(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0)
    return next((reason for reason in _REASONS.values() if reason in str(error)), None)
