"""Every signature's names, shapes and dtypes: the one place where they are written.

Dimension letters, used for nothing else in this project:

    B rows · S new tokens (padded) · C cache slots given · N tokens generated inside
    one call · L layers · H heads · D head size · E = H·D · V vocabulary
    W tokens of history · K stop ids · J biased ids

The cache is ``[B, C, L, 2, H, D]``, token-major: one token's keys and values of all
layers are one contiguous row. Slots at or beyond ``cache_length`` are never read.
Rows are packed from slot 0. Every tensor of every signature has B as axis 0, so a
server may batch unrelated callers.

``history`` holds the ids that penalties look at besides the tokens generated in this
call; -1 is padding. An id written as ``-2 - id`` is one at which the repetition penalty
looks and the presence and frequency penalties don't, as a client has it for the
prompt's tokens.

``top_ids`` and ``top_logprobs`` are -1 and 0 where they weren't asked for. ``score``
has them for all tokens but a call's first, of which it says nothing: a text goes in
chunks that overlap by one token.

Signatures called ``session_…`` build on a cache that the server keeps in one of a few
slots. ``ticket`` proves that ``slot`` is still the caller's; ``session_open`` gives
both, and the ticket that the slot had before is void from then on. ``alive`` is 0 for a
row whose ticket is void, or whose slot wasn't written as far as the call builds on:
nothing was written, its tokens are −1, its count is 0, and its logits and rows are
zeros.

- Calls build on the first ``cache_length`` rows of a slot and write after them, so a
  repeated call does the same again. ``session_write`` puts ``cache_length`` rows of
  ``cache`` at ``start`` and after; ``session_read`` gives ``size`` rows from ``start``
  on; ``session_copy`` copies the first ``cache_length`` rows.
- Callers draw ``row`` of ``session_open`` at random: rows with equal numbers are one
  row, repeated by a batcher to fill a batch up, and get the same slot. Only 0 stands
  for no number, and gets a slot wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .cache_layout import CacheLayout
from .constants import CONTRACT_VERSION, TOP_LOGPROBS

Dim = str | int
"""A dimension: a fixed size, or one of the letters above for one that varies."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature: its alias, numpy dtype name and shape.

    ``dtype`` is ``"int32"``, ``"int64"``, ``"float32"`` or ``"string"`` (bytes on the
    wire); ``since`` the contract version that brought it.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    since: int = 1

    def numpy_dtype(self) -> np.dtype:
        """The numpy dtype that carries it (``object`` for strings)."""
        return np.dtype(object if self.dtype == "string" else self.dtype)


@dataclass(frozen=True)
class SignatureSpec:
    """One signature: its name, and its inputs and outputs in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


EXTRA_OUTPUTS = {"score": frozenset({"top_ids", "top_logprobs"})}
"""Outputs of a signature that take computations of their own. The others come by the
way, so a server may compute these whether they are fetched or not."""


def generate_name(tokens_per_call: int) -> str:
    """Name of the signature that generates up to N tokens in one call."""
    return f"generate_{tokens_per_call}"


def tokens_per_call(name: str) -> int | None:
    """N of a ``generate_{N}`` signature's name; None for any other name."""
    match = re.fullmatch(r"generate_([1-9][0-9]{0,9})", name)
    return int(match.group(1)) if match else None


def session_generate_name(tokens_per_call: int) -> str:
    """Name of the signature that does the same in a slot of the server's."""
    return f"session_generate_{tokens_per_call}"


def session_tokens_per_call(name: str) -> int | None:
    """N of a ``session_generate_{N}`` signature's name; None for any other name."""
    before, _, rest = name.partition("session_")
    return None if before else tokens_per_call(rest)


def session_names(generate: Iterable[int]) -> list[str]:
    """Names of all signatures of sessions, for the N of ``generate``."""
    return [*_SESSION_TABLE, *map(session_generate_name, generate)]


def signature(
    name: str,
    layout: CacheLayout,
    *,
    version: int = CONTRACT_VERSION,
    vocab_size: Dim = "V",
    hidden_size: Dim = "E",
) -> SignatureSpec:
    """The contract's signature called ``name`` for a model's cache layout.

    ``version`` is the contract's that the model was exported with.

    Raises:
        KeyError: the contract has no such signature.
    """
    N = tokens_per_call(name)
    if N is not None:
        inputs, outputs = _GENERATE
    elif (N := session_tokens_per_call(name)) is not None:
        inputs, outputs = _in_slots(*_GENERATE)
    else:
        inputs, outputs = _TABLE[name]
    sizes: dict[Dim, tuple[Dim, ...]] = {
        "V": (vocab_size,),
        "E": (hidden_size,),
        "row": layout.row_shape,
    }
    if N is not None:
        sizes["N"] = (N,)

    def sized(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        shapes = [
            tuple(size for dim in spec.shape for size in sizes.get(dim, (dim,)))
            for spec in specs
        ]
        pairs = zip(specs, shapes, strict=True)
        return tuple(replace(s, shape=x) for s, x in pairs if s.since <= version)

    return SignatureSpec(name, sized(inputs), sized(outputs))


def _int32(name: str, *shape: Dim, since: int = 1) -> TensorSpec:
    return TensorSpec(name, "int32", shape, since)


def _int64(name: str, *shape: Dim) -> TensorSpec:
    return TensorSpec(name, "int64", shape)


def _float32(name: str, *shape: Dim, since: int = 1) -> TensorSpec:
    return TensorSpec(name, "float32", shape, since)


_NEW_TOKENS = (_int32("input_ids", "B", "S"), _int32("input_length", "B"))


def _cache(since: int = 1) -> tuple[TensorSpec, TensorSpec]:
    return (
        _float32("cache", "B", "C", "row", since=since),
        _int32("cache_length", "B", since=since),
    )


def _top(dim: Dim) -> tuple[TensorSpec, TensorSpec]:
    """The likeliest tokens of each step, likeliest first."""
    return (
        _int32("top_ids", "B", dim, TOP_LOGPROBS, since=2),
        _float32("top_logprobs", "B", dim, TOP_LOGPROBS, since=2),
    )


_CONTINUED = (*_NEW_TOKENS, *_cache())
_NEXT = (_float32("logits", "B", "V"), _float32("new_cache", "B", "S", "row"))

_GENERATE = (
    (
        *_CONTINUED,
        _int32("max_new_tokens", "B"),
        _int32("history", "B", "W"),
        _int32("stop_ids", "B", "K"),
        _int32("seed", "B", 2),
        _float32("temperature", "B"),
        _int32("top_k", "B"),
        _float32("top_p", "B"),
        _float32("repetition_penalty", "B"),
        _float32("min_p", "B", since=2),
        _float32("presence_penalty", "B", since=2),
        _float32("frequency_penalty", "B", since=2),
        _int32("min_new_tokens", "B", since=2),
        _int32("bias_ids", "B", "J", since=2),
        _float32("bias", "B", "J", since=2),
        _int32("top_logprobs", "B", since=2),
    ),
    (
        _int32("tokens", "B", "N"),
        _float32("logprobs", "B", "N"),
        _int32("count", "B"),
        _float32("new_cache", "B", "S+N-1", "row"),
        *_top("N"),
    ),
)

_Tensors = tuple[TensorSpec, ...]
_SLOT = (_int32("slot", "B"), _int64("ticket", "B"))
_ALIVE = _int32("alive", "B")


def _in_slots(inputs: _Tensors, outputs: _Tensors) -> tuple[_Tensors, _Tensors]:
    """The tensors of a signature whose cache stays in the server."""
    cache = next(tensor for tensor in inputs if tensor.name == "cache")
    at = inputs.index(cache)
    kept = tuple(tensor for tensor in outputs if tensor.name != "new_cache")
    return (*inputs[:at], *_SLOT, *inputs[at + 1 :]), (*kept, _ALIVE)


_SESSION_TABLE: dict[str, tuple[_Tensors, _Tensors]] = {
    "session_open": ((_int32("row", "B"),), _SLOT),
    "session_decode": _in_slots(_CONTINUED, _NEXT),
    "session_write": (
        (
            *_SLOT,
            _float32("cache", "B", "C", "row"),
            _int32("start", "B"),
            _int32("cache_length", "B"),
        ),
        (_ALIVE,),
    ),
    "session_read": (
        (*_SLOT, _int32("start", "B"), _int32("size", "B")),
        (_float32("cache", "B", "C", "row"), _ALIVE),
    ),
    "session_copy": (
        (
            *_SLOT,
            _int32("to_slot", "B"),
            _int64("to_ticket", "B"),
            _int32("cache_length", "B"),
        ),
        (_ALIVE,),
    ),
}

_TABLE: dict[str, tuple[_Tensors, _Tensors]] = {
    **_SESSION_TABLE,
    "serving_default": (
        (_int32("input_ids", "B", "S"), _int32("attention_mask", "B", "S")),
        (_float32("logits", "B", "S", "V"),),
    ),
    "prefill": (_NEW_TOKENS, _NEXT),
    "decode": (_CONTINUED, _NEXT),
    "score": (
        (*_NEW_TOKENS, *_cache(since=2)),
        (
            _float32("logprobs", "B", "S"),
            *_top("S"),
            _float32("new_cache", "B", "S", "row", since=2),
        ),
    ),
    "embed": (
        _NEW_TOKENS,
        (
            _float32("last_hidden_state", "B", "S", "E"),
            _float32("pooled", "B", "E", since=2),
        ),
    ),
    "describe": (
        (_int32("row", "B"),),
        (TensorSpec("manifest", "string", ("B",)),),
    ),
    "tokenizer": (
        (_int32("row", "B"),),
        (TensorSpec("tokenizer", "string", ("B",)),),
    ),
}
"""Inputs and outputs by name; ``"row"`` stands for the axes of a cache row."""
