"""What a right reply is like: names, dtypes, shapes and values, from the contract.

Whatever a server sends is compared before anything is done with it, so that a wrong
reply is an error that names its sender, and never a wrong text.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as GenericSequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from ..contract import (
    MANIFEST_LIMIT,
    MESSAGE_LIMIT,
    CacheLayout,
    TensorSpec,
    session_tokens_per_call,
    tokens_per_call,
)
from ..errors import MalformedReply
from ..transports.base import Described
from .served_model import ServedModel

_OVERHEAD = 1 << 16  # bytes of names, shapes and the model's spec in a message
_MOST_BYTES = {
    "float32": 4,
    "int32": 10,
    "int64": 10,
}  # of a value; a negative varint takes ten
_ROUNDING = 1e-3  # above 0 that a log-probability may be
_TOKENIZER_LIMIT = 64 << 20
_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all of it set: NaN or infinite


@dataclass(frozen=True)
class ExpectedReply:
    """The reply to a call of a signature that takes tokens, or of a session.

    Args:
        model: what is served.
        signature: the signature called.
        outputs: names of the outputs to fetch, empty for all.
        rows: B of the call.
        fed: tokens of each real row, ``[real rows]``; rows after them are padding.
        size: S of the call, for ``session_read`` the rows asked for. A server that pads
            inputs, to join calls of unequal sizes, answers with more.
        most_tokens: most new tokens of each real row of ``generate_{N}``.
        top: how many likeliest tokens each real row asked for, if any did.
    """

    model: ServedModel
    signature: str
    outputs: tuple[str, ...]
    rows: int
    fed: tuple[int, ...]
    size: int
    most_tokens: tuple[int, ...] = ()
    top: tuple[int, ...] = ()

    @property
    def version(self) -> int | None:
        """The version served when the call was planned; another may answer."""
        return self.model.version

    @property
    def most_bytes(self) -> int:
        """Most bytes of a right reply, whichever way the server encodes it."""
        total = _OVERHEAD
        for spec in self._specs.values():
            most = [size for _, size in self._sizes(spec)]
            total += prod(most) * _MOST_BYTES[spec.dtype]
        return min(total, MESSAGE_LIMIT)

    def check(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Raise ``MalformedReply`` for anything that the contract does not allow."""
        for name, spec in self._specs.items():
            self._check_tensor(spec, outputs.get(name))
        fed = np.array(self.fed)
        alive = np.ones(len(fed), bool)
        if "alive" in self._specs:  # the other rows have computed nothing
            alive = _checked_alive(outputs["alive"])[: len(fed)]
        cached = fed
        if self.most_tokens:
            count = self._checked_counts(outputs["count"], alive)
            self._check_tokens(outputs["tokens"], outputs["logprobs"], count)
            cached = fed + count - 1
            if any(self.top):
                inside = np.arange(outputs["tokens"].shape[1]) < count[:, None]
                self._check_top(outputs, inside)
        if "new_cache" in self._specs:
            _check_cache(outputs["new_cache"], cached, self.model.layout)
        if "cache" in self._specs:
            _check_cache(outputs["cache"], fed * alive, self.model.layout)
        if "slot" in self._specs:
            self._check_slots(outputs["slot"])
        if "logits" in self._specs:
            _check_finite("logits", outputs["logits"][: len(fed)])
        if self.signature == "score":
            inside = np.arange(outputs["logprobs"].shape[1]) < fed[:, None]
            inside[:, 0] = False  # nothing comes before the first token
            _check_logprobs("logprobs", outputs["logprobs"][: len(fed)][inside])
            if any(self.top):
                self._check_top(outputs, inside)
        if "last_hidden_state" in self._specs:
            states = outputs["last_hidden_state"]
            for row, tokens in zip(states, self.fed, strict=False):
                _check_finite("last_hidden_state", row[:tokens])
        if "pooled" in self._specs:
            _check_finite("pooled", outputs["pooled"][: len(fed)])

    def of(self, model: Described) -> ExpectedReply:
        """The same of another ``ServedModel``."""
        assert isinstance(model, ServedModel)
        return replace(self, model=model)

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        contract = self.model.signature(self.signature)
        return {
            spec.name: spec
            for spec in contract.outputs
            if not self.outputs or spec.name in self.outputs
        }

    def _sizes(self, spec: TensorSpec) -> list[tuple[int, int]]:
        """The smallest and the largest size that each axis may have."""
        return [
            self._letters[dim] if isinstance(dim, str) else (dim, dim)
            for dim in spec.shape
        ]

    @cached_property
    def _letters(self) -> dict[str, tuple[int, int]]:
        name = self.signature
        N = tokens_per_call(name) or session_tokens_per_call(name) or 0
        positions = self.model.manifest.max_positions
        largest = max(self.size, self.model.largest_size(name))
        return {
            "B": (self.rows, self.rows),
            "S": (self.size, largest),
            "S+N-1": (self.size + N - 1, largest + N - 1),
            "C": (self.size, max(self.size, positions)),
        }

    def _check_tensor(self, spec: TensorSpec, array: np.ndarray | None) -> None:
        if array is None:
            raise MalformedReply(f"output {spec.name!r} is missing")
        sizes = self._sizes(spec)
        fits = array.ndim == len(sizes) and all(
            least <= size <= most
            for size, (least, most) in zip(array.shape, sizes, strict=True)
        )
        if not fits or array.dtype != spec.numpy_dtype():
            raise MalformedReply(
                f"output {spec.name!r} is {array.dtype} {list(array.shape)}, "
                f"expected {spec.dtype} {[least for least, _ in sizes]}"
            )

    def _check_slots(self, slots: np.ndarray) -> None:
        count = self.model.manifest.sessions["slots"]
        if slots.min() < 0 or slots.max() >= count:
            raise MalformedReply(
                f"output 'slot' must be 0 to {count - 1}, got {slots.tolist()}"
            )

    def _checked_counts(self, count: np.ndarray, alive: np.ndarray) -> np.ndarray:
        real, most = count[: len(self.fed)], np.array(self.most_tokens)
        wrong = np.where(alive, (real < 1) | (real > most), real != 0)
        if wrong.any():
            b = int(np.argmax(wrong))
            allowed = f"1 to {most[b]}" if alive[b] else "0"
            raise MalformedReply(
                f"output 'count' must be {allowed} new tokens, got {real[b]}"
            )
        return real.astype(np.int64)

    def _check_tokens(
        self, tokens: np.ndarray, logprobs: np.ndarray, count: np.ndarray
    ) -> None:
        inside = np.arange(tokens.shape[1]) < count[:, None]
        self._check_ids("tokens", tokens[: len(count)][inside])
        _check_logprobs("logprobs", logprobs[: len(count)][inside])

    def _check_top(self, outputs: Mapping[str, np.ndarray], inside: np.ndarray) -> None:
        """The likeliest tokens that were asked for, where ``inside`` [R,T]."""
        ids, logprobs = outputs["top_ids"], outputs["top_logprobs"]
        asked = np.arange(ids.shape[2]) < np.array(self.top)[:, None, None]
        asked = inside[:, :, None] & asked
        self._check_ids("top_ids", ids[: len(inside)][asked])
        _check_logprobs("top_logprobs", logprobs[: len(inside)][asked])

    def _check_ids(self, name: str, ids: np.ndarray) -> None:
        vocabulary = self.model.manifest.vocab_size
        wrong = ids[(ids < 0) | (ids >= vocabulary)]
        if wrong.size:
            raise MalformedReply(
                f"output {name!r} must be ids from 0 to {vocabulary - 1}, "
                f"got {wrong[0]}"
            )


@dataclass(frozen=True)
class ExpectedText:
    """A reply of one text: ``describe``'s manifest, or the tokenizer."""

    name: str
    limit: int
    version: int | None = None

    @property
    def most_bytes(self) -> int:
        """Most bytes of the text, and what is around it."""
        return self.limit + _OVERHEAD

    def check(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Raise ``MalformedReply`` unless it is one text."""
        self.read(outputs)

    def of(self, model: Described) -> ExpectedText:
        """A text is a text, whoever sends it."""
        return self

    def read(self, outputs: Mapping[str, np.ndarray]) -> bytes:
        """The text's bytes."""
        array = outputs.get(self.name)
        if array is None or array.dtype != object or array.shape != (1,):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise MalformedReply(f"output {self.name!r} must be one text, got {got}")
        text = array[0]
        data = text.encode() if isinstance(text, str) else text
        if not isinstance(data, bytes):
            raise MalformedReply(f"output {self.name!r} must be text")
        return data


EXPECTED_MANIFEST = ExpectedText("manifest", MANIFEST_LIMIT)
EXPECTED_TOKENIZER = ExpectedText("tokenizer", _TOKENIZER_LIMIT)


def _checked_alive(alive: np.ndarray) -> np.ndarray:
    if ((alive != 0) & (alive != 1)).any():
        raise MalformedReply(f"output 'alive' must be 0 or 1, got {alive.tolist()}")
    return alive == 1


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise MalformedReply(f"output {name!r} holds NaN or infinite numbers")


def _check_logprobs(name: str, values: np.ndarray) -> None:
    _check_finite(name, values)
    if values.size and values.max() > _ROUNDING:
        raise MalformedReply(
            f"output {name!r} must be 0 or less, got {float(values.max()):g}"
        )


def _check_cache(
    new_cache: np.ndarray, rows: GenericSequence[int] | np.ndarray, layout: CacheLayout
) -> None:
    """Look at the rows that will be kept, as the numbers that they travel as."""
    for row, used in zip(new_cache, rows, strict=False):
        kept = row[: int(used)]
        if layout.dtype == "int8":
            _check_finite("new_cache", kept[..., -1])  # scales; integers are all right
        elif layout.dtype == "bfloat16":
            halves = np.ascontiguousarray(kept).view(np.uint16)
            if ((halves & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any():
                raise MalformedReply("output 'new_cache' holds NaN or infinite numbers")
        else:
            _check_finite("new_cache", kept)
