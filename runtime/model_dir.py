"""An export's base folder on this machine: its numbered versions."""

from __future__ import annotations

from pathlib import Path


def version_folders(base: Path) -> dict[int, Path]:
    """Folders by version number, the newest first; none where ``base`` is no folder."""
    if not base.is_dir():
        return {}
    found = {
        int(folder.name): folder
        for folder in base.iterdir()
        if folder.name.isascii() and folder.name.isdigit() and folder.is_dir()
    }
    return dict(sorted(found.items(), reverse=True))
