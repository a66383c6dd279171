"""Digests of an export's files, and the check of a folder against its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..runtime.contract import Manifest
from .publish import MANIFEST_PATH

_BLOCK = 4 * 1024**2


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, read as a stream."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with Path(path).open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def folder_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file of a version but the manifest, by its path in it.

    A symbolic link has the digest ``"link"``: what it leads to is not in the folder.
    """
    folder = Path(folder)
    names = sorted(n for n in _files(folder) if n != MANIFEST_PATH)

    def digest(name: str) -> str:
        path = folder / name
        return "link" if path.is_symlink() else file_digest(path)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def check_files(folder: str | Path, manifest: Manifest) -> list[str]:
    """What differs between a folder's files and its manifest, one sentence each."""
    if not manifest.files:
        return ["the manifest lists no files, so nothing vouches for them"]
    found = folder_digests(folder)
    problems = [f"{n} is missing" for n in manifest.files if n not in found]
    problems += [
        f"{n} is not in the manifest" for n in found if n not in manifest.files
    ]
    problems += [
        f"{name} has been changed since the export: SHA-256 {found[name][:12]}…, "
        f"expected {digest[:12]}…"
        for name, digest in manifest.files.items()
        if name in found and found[name] != digest
    ]
    return sorted(problems)


def export_digest(manifest: Manifest) -> str:
    """One digest for a whole export: of its manifest, which has all the others."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def _files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(root) / name).relative_to(folder).as_posix()
