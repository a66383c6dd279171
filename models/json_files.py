"""``config.json`` and ``generation_config.json``: read with limits, written whole."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .config_checks import ConfigError
from .regular_files import read_regular_file

_LARGEST_FILE = 16 * 1024**2  # bytes


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, never half of it; its folder is created if missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            target.write(json.dumps(values, indent=2, sort_keys=True) + "\n")
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ConfigError for anything else."""
    try:
        values = json.loads(read_regular_file(file, limit=_LARGEST_FILE))
    except FileNotFoundError:
        raise ConfigError(f"{file.parent} holds no {file.name}") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"the configuration should be a JSON object, got {type(values).__name__}"
        )
    return values
