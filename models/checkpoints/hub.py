"""Hub ids to local directories, through the ``huggingface_hub`` package and its cache.

The environment has a say as everywhere: ``HF_HOME``/``HF_HUB_CACHE``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
    _check(name, format)
    offline = local_files_only or _is_set("HF_HUB_OFFLINE")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    cache = None if cache_dir is None else Path(cache_dir)
    repository = _Repository(name, below, revision, cache, token, endpoint)
    formats = ([format] if format else list(FORMATS)) if weights else []
    try:
        if not offline and (files := repository.listed()) is not None:
            chosen = _choose(name, files, formats, weights)
            return repository.download(chosen, force_download=force_download)
        cached = repository.download(["config.json"], local_files_only=True)
        files = [file.name for file in cached.iterdir()] if cached.is_dir() else []
        chosen = _choose(f"{name} in {cached}", files, formats, weights)
        return repository.download(chosen, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the package's errors have no common base
        raise _translated(error, name, revision, offline) from None


def _check(name: str, format: str | None) -> None:
    """Raise for what is no hub id or no format, or without the hub's package."""
    if not _ID.fullmatch(name) or ".." in name:
        raise CheckpointNotFound(
            f"{name!r} is neither an existing path nor like 'facebook/opt-125m'"
        )
    if format is not None and format not in FORMATS:
        raise ValueError(
            f"format should be one of {', '.join(FORMATS)}, got {format!r}"
        )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise HubError(
            f"{name!r} is not a local directory, and to fetch it from the hub the "
            "package huggingface_hub is needed: pip install 'optserve[export]'"
        ) from None


@dataclass(frozen=True)
class _Repository:
    """A folder of a repository on the hub, and how to get at it."""

    name: str
    folder: PurePosixPath
    revision: str | None
    cache_dir: Path | None
    token: str | bool | None
    endpoint: str | None

    def listed(self) -> list[str] | None:
        """Names of the folder's files; None if the hub can't be reached."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self.token)
        try:
            info = api.model_info(self.name, revision=self.revision)
        except Exception as error:
            if not _is_connection_fault(error):
                raise
            return None
        paths = [PurePosixPath(entry.rfilename) for entry in info.siblings or ()]
        return [path.name for path in paths if path.parent == self.folder]

    def download(
        self,
        names: list[str],
        *,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Path:
        """The local folder, with the files of these names as far as they exist."""
        from huggingface_hub import snapshot_download

        snapshot = snapshot_download(
            self.name,
            revision=self.revision,
            cache_dir=self.cache_dir,
            token=self.token,
            endpoint=self.endpoint,
            allow_patterns=[str(self.folder / name) for name in names],
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return Path(snapshot) / self.folder


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
