"""What an export says of itself.

A manifest comes from a file or from a server, so it is checked as data before anyone
computes with it: types, ranges, characters and depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, NoReturn

from .cache_layout import CacheLayout
from .constants import CONTRACT_VERSION, INT32_LIMIT, MANIFEST_LIMIT, ROWS_LIMIT

LINK_DIGEST = "link"
"""Stands for a symbolic link's digest: what it leads to is not in the folder."""

_DEPTH_LIMIT = 16
_ENTRIES_LIMIT = 100_000
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_DIGEST = re.compile(rf"[0-9a-f]{{64}}|{LINK_DIGEST}")


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself, as JSON (``describe`` and ``assets.extra/``).

    ``config`` is the model's ``config.json`` content. Bucket lists are ascending;
    an empty list means that any size is accepted. ``generate`` lists the N of the
    ``generate_{N}`` signatures. ``batch_sizes`` are the B that were compiled ahead
    (``allowed_batch_sizes`` of the server). ``sessions`` is empty, or says how many
    ``slots`` the server keeps caches in and how many ``positions`` each has.
    ``prompt_buckets`` are sizes of S, ``cache_buckets`` of C; ``compiled_prompts``
    those of S that a compiled graph rounds up to by itself. ``activations`` is empty,
    or has the ``dtype`` that int8 weights are multiplied with, and the ``losses`` on a
    text, by dtype, that it was chosen by.

    Raises:
        ValueError: a value of the wrong type or out of range; the message names it.
    """

    config: dict[str, Any]
    framework: str  # "tf" | "jax"
    compiler: str  # "none" | "xla"
    weights_dtype: str
    cache_dtype: str
    signatures: list[str]
    generate: list[int] = field(default_factory=list)
    prompt_buckets: list[int] = field(default_factory=list)
    cache_buckets: list[int] = field(default_factory=list)
    compiled_prompts: list[int] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    sessions: dict[str, int] = field(default_factory=dict)
    activations: dict[str, Any] = field(default_factory=dict)
    max_positions: int = 2048
    max_tokens_per_call: int = 0  # of B x S and of B x C; 0: nothing is said
    vocab_size: int = 50272
    bos_token_id: int = 2
    eos_token_id: int = 2
    pad_token_id: int = 1
    tokenizer: bool = False  # whether the `tokenizer` signature is there
    checkpoint_digest: str = ""  # sha256 over names, dtypes, shapes and bytes
    export_options: dict[str, Any] = field(default_factory=dict)  # as they were given
    tool_versions: dict[str, str] = field(default_factory=dict)
    contract_version: int = CONTRACT_VERSION
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))
        _ = self.cache_layout, self.output_width  # raise for sizes that make none

    @cached_property
    def cache_layout(self) -> CacheLayout:
        """The cache's layout for this model."""
        layers, heads, hidden = (
            _size(f"config.{name}", self.config.get(name))
            for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        if hidden % heads:
            _refuse("config.hidden_size", f"divisible by the {heads} heads", hidden)
        return CacheLayout(layers, heads, hidden // heads, self.cache_dtype)

    @cached_property
    def output_width(self) -> int:
        """Width of the last hidden states: 350m projects them to its embeddings'."""
        projected = self.config.get("word_embed_proj_dim")
        if projected is None:
            return self.cache_layout.heads * self.cache_layout.head_dim
        return _size("config.word_embed_proj_dim", projected)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces that depend on the platform."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest; keys of later versions are ignored.

        Raises:
            ValueError: not JSON, not an object, a required key is missing, or a value
                that no manifest has.
        """
        if len(text) > MANIFEST_LIMIT:
            raise ValueError(
                f"the manifest has {len(text)} bytes, at most {MANIFEST_LIMIT} are read"
            )
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError("the manifest is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"the manifest is not JSON: {error}") from None
        if not isinstance(data, Mapping):
            raise ValueError("the manifest is not a JSON object")
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as error:
            raise ValueError(f"the manifest lacks a key: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse(name: str, expected: str, value: object) -> NoReturn:
    """Say what is wrong; the value as ASCII, since it may hold anything."""
    shown = ascii(value)
    if len(shown) > 80:
        shown = f"{shown[:80]}…"
    raise ValueError(f"the manifest's {name} should be {expected}, got {shown}")


def _size(name: str, value: object) -> int:
    """A positive int32. ``True`` is refused, though Python counts it as 1."""
    if type(value) is not int or not 1 <= value <= INT32_LIMIT:
        _refuse(name, f"a whole number from 1 to {INT32_LIMIT}", value)
    return value


def _limit(name: str, value: object) -> None:
    if value != 0 or type(value) is not int:
        _size(name, value)


def _token_id(name: str, value: object) -> None:
    if type(value) is not int or not -INT32_LIMIT <= value <= INT32_LIMIT:
        _refuse(name, "a token id", value)


def _word(name: str, value: object) -> None:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        _refuse(name, "a short word of letters, digits and ._+-", value)


def _sizes(name: str, value: object) -> None:
    if not isinstance(value, list) or len(value) > _ENTRIES_LIMIT:
        _refuse(name, "a list of sizes", value)
    sizes = [_size(name, size) for size in value]
    if any(a >= b for a, b in pairwise(sizes)):
        _refuse(name, "ascending sizes", value)


def _rows(name: str, value: object) -> None:
    _sizes(name, value)
    if isinstance(value, list) and value and value[-1] > ROWS_LIMIT:
        _refuse(name, f"sizes up to {ROWS_LIMIT}", value)


def _names(name: str, value: object) -> None:
    if not isinstance(value, list) or len(value) > _ENTRIES_LIMIT:
        _refuse(name, "a list of names", value)
    for entry in value:
        _word(name, entry)


def _session_sizes(name: str, value: object) -> None:
    if not isinstance(value, dict) or value.keys() - {"slots", "positions"}:
        _refuse(name, "empty, or have slots and positions", value)
    for size in ("slots", "positions") if value else ():
        _size(f"{name}.{size}", value.get(size))


def _activations(name: str, value: object) -> None:
    if not isinstance(value, dict) or value.keys() - {"dtype", "losses"}:
        _refuse(name, "empty, or have a dtype and losses", value)
    if value:
        _word(f"{name}.dtype", value.get("dtype"))
        _plain_data(f"{name}.losses", value.get("losses"))


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        _refuse(name, "true or false", value)


def _checkpoint_digest(name: str, value: object) -> None:
    if value != "" and not (isinstance(value, str) and _DIGEST.fullmatch(value)):
        _refuse(name, "a SHA-256 in hexadecimal", value)


def _versions(name: str, value: object) -> None:
    if not isinstance(value, dict) or len(value) > _ENTRIES_LIMIT:
        _refuse(name, "an object of names and versions", value)
    for tool, version in value.items():
        _word(name, tool)
        _word(f"{name}.{tool}", version)


def _files(name: str, value: object) -> None:
    """Paths stay inside the folder, whoever joins them to it."""
    if not isinstance(value, dict) or len(value) > _ENTRIES_LIMIT:
        _refuse(name, "an object of paths and digests", value)
    for path, digest in value.items():
        parts = PurePosixPath(path).parts
        inside = parts and parts[0] != "/" and ".." not in parts
        if not inside or not path.isprintable() or len(path) > 4096:
            _refuse(name, "paths inside the export's folder", path)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            _refuse(f"{name}[{path!a}]", "a SHA-256 in hexadecimal", digest)


def _plain_data(name: str, value: object) -> None:
    if not isinstance(value, dict):
        _refuse(name, "an object", value)
    if _deeper_than(value, _DEPTH_LIMIT):
        raise ValueError(f"the manifest's {name} is nested too deeply")


def _deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(v, levels - 1) for v in inside)


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "contract_version": _size,
    "config": _plain_data,
    "framework": _word,
    "compiler": _word,
    "weights_dtype": _word,
    "cache_dtype": _word,
    "signatures": _names,
    "generate": _sizes,
    "prompt_buckets": _sizes,
    "cache_buckets": _sizes,
    "compiled_prompts": _sizes,
    "batch_sizes": _rows,
    "sessions": _session_sizes,
    "activations": _activations,
    "max_positions": _size,
    "max_tokens_per_call": _limit,
    "vocab_size": _size,
    "bos_token_id": _token_id,
    "eos_token_id": _token_id,
    "pad_token_id": _token_id,
    "tokenizer": _flag,
    "checkpoint_digest": _checkpoint_digest,
    "export_options": _plain_data,
    "tool_versions": _versions,
    "files": _files,
}
