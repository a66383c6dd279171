"""Hub ids to local directories, through the ``huggingface_hub`` package and its cache.

The environment has a say as everywhere: ``HF_HOME``/``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import CheckpointError, CheckpointNotFound, HubError
from .names import FILE_NAMES
from .opening import FORMATS

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
    subfolder: str = "",
    format: str | None = None,
    weights: bool = True,
) -> Path:
    """The local directory of a checkpoint; a hub id is downloaded unless it is cached.

    A path that exists wins over a hub id. From the hub come the configuration, the
    tokenizer's files and the weights in one format: ``format``, or the most preferred
    one there (none with ``weights=False``). ``revision`` is a branch, tag or commit;
    ``local_files_only`` asks the cache alone, ``force_download`` not at all. Without a
    network the cache answers. ``subfolder`` is where in the path or on the hub all
    these files are.
    Raises :class:`CheckpointNotFound` or :class:`HubError`.
    """
    path, below = Path(name_or_path), PurePosixPath(subfolder or "")
    if below.is_absolute() or ".." in below.parts:
        raise ValueError(f"subfolder should lead downwards, got {subfolder!r}")
    if path.exists():
        return path / below
    name = os.fspath(name_or_path)
    if not _ID.fullmatch(name) or ".." in name:
        raise CheckpointNotFound(
            f"{name!r} is neither an existing path nor like 'facebook/opt-125m'"
        )
    if format is not None and format not in FORMATS:
        raise ValueError(
            f"format should be one of {', '.join(FORMATS)}, got {format!r}"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            f"{name!r} is not a local directory, and to fetch it from the hub the "
            "package huggingface_hub is needed: pip install 'optserve[export]'"
        ) from None
    offline = local_files_only or _is_set("HF_HUB_OFFLINE")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    common: dict[str, Any] = {
        "repo_id": name,
        "cache_dir": cache_dir,
        "token": token,
        "endpoint": endpoint,
    }
    formats = ([format] if format else list(FORMATS)) if weights else []
    try:
        if not offline:
            api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
            try:
                info = api.model_info(name, revision=revision)
            except Exception as error:
                if not _is_connection_fault(error):
                    raise
            else:
                entries = [PurePosixPath(e.rfilename) for e in info.siblings or ()]
                files = [path.name for path in entries if path.parent == below]
                chosen = _choose(name, files, formats, weights)
                return _download(
                    below,
                    chosen,
                    **common,
                    revision=revision,
                    force_download=force_download,
                )
        common |= {"revision": revision, "local_files_only": True}
        cached = _download(below, ["config.json"], **common)
        files = [path.name for path in cached.iterdir()] if cached.is_dir() else []
        chosen = _choose(f"{name} in {cached}", files, formats, weights)
        return _download(below, chosen, **common)
    except CheckpointError:
        raise
    except Exception as error:  # the package's errors have no common base
        raise _translated(error, name, revision, offline) from None


def _download(below: PurePosixPath, names: list[str], **options: Any) -> Path:
    import huggingface_hub

    patterns = [str(below / name) for name in names]
    snapshot = huggingface_hub.snapshot_download(allow_patterns=patterns, **options)
    return Path(snapshot) / below


def weight_files(files: Iterable[str], format: str) -> list[str]:
    """Those of ``files`` with weights in ``format``: one, or an index and shards."""
    files, single = list(files), FILE_NAMES[format]
    if single in files:
        return [single]
    index = f"{single}.index.json"
    if index not in files:
        return []
    stem, _, suffix = single.rpartition(".")
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{re.escape(suffix)}")
    return [index, *(name for name in files if shard.fullmatch(name))]


def _choose(
    name: str, files: list[str], formats: list[str], weights: bool
) -> list[str]:
    small = [file for file in SMALL_FILES if file in files]
    for format in formats:
        if shards := weight_files(files, format):
            return small + shards
    if weights:
        raise CheckpointNotFound(
            f"{name} has no weights in a format that is read here: "
            + ", ".join(FILE_NAMES[format] for format in formats)
        )
    return small or ["config.json"]


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _is_connection_fault(error: Exception) -> bool:
    """Whether there was no answer at all; the HTTP package differs between versions."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(
        names & {"ConnectionError", "ConnectError", "TimeoutException", "Timeout"}
        or names & {"TransportError"}
    )


def _translated(
    error: Exception, name: str, revision: str | None, offline: bool
) -> CheckpointError:
    """One sentence for each way that the hub can fail. Never the server's own words:
    they may hold signed addresses."""
    kinds = [cls.__name__ for cls in type(error).__mro__]
    at = f" at revision {revision!r}" if revision else ""
    if "GatedRepoError" in kinds:
        return HubError(
            f"{name} is gated: accept its terms on the hub, then set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return CheckpointNotFound(
            f"the hub has no model {name!r}, or it is private and HF_TOKEN gives no "
            "access to it"
        )
    if "RevisionNotFoundError" in kinds:
        return CheckpointNotFound(f"the hub's {name} has no revision {revision!r}")
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        reason = "offline mode is on" if offline else "the hub could not be reached"
        return HubError(
            f"there is no folder {name}; as a hub id it is not complete in the cache"
            f"{at}, and {reason}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return HubError(f"the hub refused {name}{at} with status {status}")
    if _is_connection_fault(error):
        return HubError(f"the connection broke while {name}{at} was fetched")
    if isinstance(error, OSError) and error.strerror:
        return HubError(f"{name}{at} could not be stored: {error.strerror}")
    return HubError(f"{name}{at} could not be fetched: {type(error).__name__}")
