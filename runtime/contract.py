"""The graph contract, version 1: every signature's names, shapes and dtypes.

The one place where they are written down. Exporters build signatures from it,
clients check what they send against it. Needs numpy only.

Dimension letters, used for nothing else in this project:

    B rows · S new tokens (padded) · C cache slots given · N tokens generated inside
    one call · L layers · H heads · D head size · E = H·D · V vocabulary
    W tokens of history · K stop ids

The cache is ``[B, C, L, 2, H, D]``, token-major: one token's keys and values of all
layers are one contiguous row. Slots at or beyond ``cache_length`` are never read.
Rows are packed from slot 0. Every tensor of every signature has B as axis 0, so a
server may batch unrelated callers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

CONTRACT_VERSION = 1

CACHE_DTYPES = ("float32", "bfloat16", "int8")
WEIGHT_DTYPES = ("float32", "bfloat16", "float16", "int8")

Dim = str | int
"""A dimension: a fixed size, or one of the letters above for one that varies."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature: its alias, numpy dtype name and shape.

    ``dtype`` is ``"int32"``, ``"float32"`` or ``"string"`` (bytes on the wire).
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def numpy_dtype(self) -> np.dtype:
        """The numpy dtype that carries it (``object`` for strings)."""
        return np.dtype(object if self.dtype == "string" else self.dtype)


@dataclass(frozen=True)
class SignatureSpec:
    """One signature: its name, and its inputs and outputs in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class CacheLayout:
    """Sizes of one cache row and how its numbers travel.

    ``dtype`` names what a number is stored as:

    - ``float32``: ``[L, 2, H, D]``;
    - ``bfloat16``: pairs bitcast to float32, ``[L, 2, H, D/2]`` (the server's default
      reply encoding would turn 16-bit floats into variable-length integers);
    - ``int8``: fours bitcast to float32 and, behind them, the float32 scale of the
      head's vector (value = integer · scale), ``[L, 2, H, D/4 + 1]``.

    The array on the wire is float32 in all three.
    """

    layers: int
    heads: int
    head_dim: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_DTYPES:
            raise ValueError(f"cache dtype {self.dtype!r} is none of {CACHE_DTYPES}")
        group = {"float32": 1, "bfloat16": 2, "int8": 4}[self.dtype]
        if self.head_dim % group:
            raise ValueError(
                f"a {self.dtype} cache needs a head size divisible by {group}, "
                f"got {self.head_dim}"
            )

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """Shape of one token's row on the wire, float32."""
        width = {
            "float32": self.head_dim,
            "bfloat16": self.head_dim // 2,
            "int8": self.head_dim // 4 + 1,
        }[self.dtype]
        return (self.layers, 2, self.heads, width)

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row on the wire."""
        return 4 * int(np.prod(self.row_shape))


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself, as JSON (``describe`` and ``assets.extra/``).

    ``config`` is the model's ``config.json`` content. Bucket lists are ascending;
    an empty list means that any size is accepted. ``generate`` lists the N of the
    ``generate_{N}`` signatures. ``batch_sizes`` are the B that were compiled ahead
    (``allowed_batch_sizes`` of the server). ``prompt_buckets`` are sizes of S,
    ``cache_buckets`` of C; ``compiled_prompts`` and ``compiled_caches`` those that a
    compiled graph rounds up to by itself.
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
    compiled_caches: list[int] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    max_positions: int = 2048
    vocab_size: int = 50272
    bos_token_id: int = 2
    eos_token_id: int = 2
    pad_token_id: int = 1
    tokenizer: bool = False  # whether the `tokenizer` signature is there
    checkpoint_digest: str = ""  # sha256 over names, dtypes, shapes and bytes
    tool_versions: dict[str, str] = field(default_factory=dict)
    contract_version: int = CONTRACT_VERSION
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256

    @property
    def cache_layout(self) -> CacheLayout:
        """The cache's layout for this model."""
        heads = int(self.config["num_attention_heads"])
        return CacheLayout(
            layers=int(self.config["num_hidden_layers"]),
            heads=heads,
            head_dim=int(self.config["hidden_size"]) // heads,
            dtype=self.cache_dtype,
        )

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces that depend on the platform."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest; keys of later versions are ignored.

        Raises:
            ValueError: not JSON, not an object, or a required key is missing.
        """
        try:
            data = json.loads(text)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"the manifest is not JSON: {error}") from None
        if not isinstance(data, Mapping):
            raise ValueError("the manifest is not a JSON object")
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as error:
            raise ValueError(f"the manifest lacks a key: {error}") from None


def generate_name(tokens_per_call: int) -> str:
    """Name of the signature that generates up to N tokens in one call."""
    return f"generate_{tokens_per_call}"


def tokens_per_call(name: str) -> int | None:
    """N of a ``generate_{N}`` signature's name; None for any other name."""
    match = re.fullmatch(r"generate_([1-9][0-9]*)", name)
    return int(match.group(1)) if match else None


def signature(
    name: str, layout: CacheLayout, *, vocab_size: Dim = "V", hidden_size: Dim = "E"
) -> SignatureSpec:
    """The contract's signature called ``name`` for a model's cache layout.

    Raises:
        KeyError: the contract has no such signature.
    """
    generated = tokens_per_call(name)
    key = "generate" if generated is not None else name
    row = layout.row_shape
    ids = TensorSpec("input_ids", "int32", ("B", "S"))
    length = TensorSpec("input_length", "int32", ("B",))
    new_cache = TensorSpec("new_cache", "float32", ("B", "S", *row))
    logits = TensorSpec("logits", "float32", ("B", vocab_size))
    cached = (
        ids,
        length,
        TensorSpec("cache", "float32", ("B", "C", *row)),
        TensorSpec("cache_length", "int32", ("B",)),
    )
    vector = {
        "max_new_tokens": "int32",
        "temperature": "float32",
        "top_k": "int32",
        "top_p": "float32",
        "repetition_penalty": "float32",
    }

    def rows(alias: str) -> TensorSpec:
        return TensorSpec(alias, vector[alias], ("B",))

    which: Dim = "N" if generated is None else generated
    table: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "serving_default": (
            (ids, TensorSpec("attention_mask", "int32", ("B", "S"))),
            (TensorSpec("logits", "float32", ("B", "S", vocab_size)),),
        ),
        "prefill": ((ids, length), (logits, new_cache)),
        "decode": (cached, (logits, new_cache)),
        "generate": (
            (
                *cached,
                rows("max_new_tokens"),
                TensorSpec("history", "int32", ("B", "W")),
                TensorSpec("stop_ids", "int32", ("B", "K")),
                TensorSpec("seed", "int32", ("B", 2)),
                rows("temperature"),
                rows("top_k"),
                rows("top_p"),
                rows("repetition_penalty"),
            ),
            (
                TensorSpec("tokens", "int32", ("B", which)),
                TensorSpec("logprobs", "float32", ("B", which)),
                TensorSpec("count", "int32", ("B",)),
                TensorSpec("new_cache", "float32", ("B", "S+N-1", *row)),
            ),
        ),
        "score": ((ids, length), (TensorSpec("logprobs", "float32", ("B", "S")),)),
        "embed": (
            (ids, length),
            (TensorSpec("last_hidden_state", "float32", ("B", "S", hidden_size)),),
        ),
        "describe": (
            (TensorSpec("row", "int32", ("B",)),),
            (TensorSpec("manifest", "string", ("B",)),),
        ),
        "tokenizer": (
            (TensorSpec("row", "int32", ("B",)),),
            (TensorSpec("tokenizer", "string", ("B",)),),
        ),
    }
    inputs, outputs = table[key]
    return SignatureSpec(name, inputs, outputs)


def to_past_key_values(cache: np.ndarray) -> list[np.ndarray]:
    """The documented public layout of a cache: L arrays ``(2, B, H, C, D)``.

    Args:
        cache: ``[B, C, L, 2, H, D]``, unpacked numbers.
    """
    return list(np.transpose(cache, (2, 3, 0, 4, 1, 5)))


def from_past_key_values(past: list[np.ndarray]) -> np.ndarray:
    """``[B, C, L, 2, H, D]`` of L arrays ``(2, B, H, C, D)``."""
    return np.ascontiguousarray(np.transpose(np.stack(past), (2, 4, 0, 1, 3, 5)))
