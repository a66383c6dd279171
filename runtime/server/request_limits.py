"""What an export's requests may be: their shapes, before anything is allocated.

A few bytes can name half a billion tokens, since a tensor's last value stands for all
that follow. The graph checks ids and lengths, but only when the tensors are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..contract import (
    MESSAGE_LIMIT,
    CacheLayout,
    Dim,
    Manifest,
    SignatureSpec,
    signature,
    tokens_per_call,
)
from .serving_error import ServingError, invalid_argument

_ROWS = 32  # of an export that names no batch sizes, when all positions are used
_MOST_ROWS = 1024  # of such an export
_STRING_ROWS = 8  # of `describe` and `tokenizer`, which repeat one text for each row

STRING_SIGNATURES = ("describe", "tokenizer")


class RequestLimits:
    """The largest sizes of each dimension letter (``contract/signatures.py``).

    S, C and W: the model's positions. K and J: its vocabulary. B: the export's largest
    batch size, at least 32. B·S and B·C: that many rows of all positions. The reply,
    and a layer's attention: 2 GiB. Of sessions, C is as many slots as are read, or as
    a session has.
    """

    def __init__(self, manifest: Manifest) -> None:
        layout = manifest.cache_layout
        positions = manifest.max_positions
        slots = max(positions, *manifest.cache_buckets[-1:], 0)
        rows = max(_ROWS, *manifest.batch_sizes[-1:], 0)
        most_rows = rows if manifest.batch_sizes else _MOST_ROWS
        self._sizes = {
            "B": most_rows,
            "S": positions,
            "C": slots,
            "W": slots,
            "K": manifest.vocab_size,
            "J": manifest.vocab_size,
        }
        self._tokens = manifest.max_tokens_per_call or rows * slots
        self._session_positions = manifest.sessions.get("positions", 0)
        self._heads = layout.heads
        self._signatures = {
            name: spec
            for name in manifest.signatures
            if (spec := _known(name, manifest, layout)) is not None
        }

    def check(
        self,
        name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] = (),
    ) -> None:
        """Compare a request for signature ``name`` with what the export was made for.

        Signatures that the contract doesn't know pass.

        Raises:
            ServingError: INVALID_ARGUMENT shapes that don't fit the contract, sizes
                beyond the limits, or outputs too large for a reply.
        """
        spec = self._signatures.get(name)
        if spec is None:
            return
        self._check_sizes(spec, _all_sizes(spec, inputs), outputs)

    def allow_together(
        self,
        name: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        rows: int,
        outputs: Sequence[str] = (),
    ) -> bool:
        """Whether requests that ``check`` passed may run as one of so many rows.

        The longest lengthens the axes of all, so that together they may be too large.
        """
        spec = self._signatures.get(name)
        if spec is None:
            return True
        sizes: dict[str, int] = {}
        for each in (_all_sizes(spec, inputs) for inputs in requests):
            sizes = {
                letter: max(size, sizes.get(letter, 0)) for letter, size in each.items()
            }
        try:
            self._check_sizes(spec, sizes | {"B": rows}, outputs)
        except ServingError:
            return False
        return True

    def _check_sizes(
        self, spec: SignatureSpec, sizes: Mapping[str, int], outputs: Sequence[str]
    ) -> None:
        name, limits = spec.name, dict(self._sizes)
        if name in STRING_SIGNATURES:
            limits["B"] = _STRING_ROWS
        for letter, size in sizes.items():
            if size > limits[letter]:
                raise invalid_argument(
                    f"signature {name} takes at most {letter} = {limits[letter]}, "
                    f"got {size} ({_MEANING[letter]})"
                )
        for letter in ("S", "C"):
            tokens = sizes.get("B", 1) * sizes.get(letter, 0)
            if tokens > self._tokens:
                raise invalid_argument(
                    f"signature {name} takes at most B x {letter} = {self._tokens}, "
                    f"got {tokens}: send fewer rows at a time"
                )
        self._check_attention(spec, sizes)
        _check_reply(spec, sizes, outputs)

    def _check_attention(self, spec: SignatureSpec, sizes: Mapping[str, int]) -> None:
        """A layer's scores, [B, H, S, C + S] float32, are the largest tensor by far."""
        new = sizes.get("S", 0)
        in_slot = any(tensor.name == "slot" for tensor in spec.inputs)
        cached = self._session_positions if in_slot else 0
        seen = new + sizes.get("C", cached)
        size = 4 * sizes.get("B", 1) * self._heads * new * seen
        if size > MESSAGE_LIMIT:
            raise invalid_argument(
                f"signature {spec.name} would need {size} bytes for the attention of "
                f"one layer, at most {MESSAGE_LIMIT} are allowed: send fewer rows or "
                "tokens at a time"
            )


_MEANING = {
    "B": "rows; send fewer at a time",
    "S": "new tokens of a row",
    "C": "cache slots of a row",
    "W": "tokens of history of a row",
    "K": "stop ids of a row",
    "J": "biased ids of a row",
}


def _known(name: str, manifest: Manifest, layout: CacheLayout) -> SignatureSpec | None:
    try:
        return signature(
            name,
            layout,
            version=manifest.contract_version,
            vocab_size=manifest.vocab_size,
            hidden_size=manifest.output_width,
        )
    except KeyError:
        return None


def _all_sizes(spec: SignatureSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes, and as C the rows that are to be read from a session."""
    sizes = _sizes(spec, inputs)
    if "size" in inputs:
        sizes["C"] = max(0, int(inputs["size"].max(initial=0)))
    return sizes


def _sizes(spec: SignatureSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The size of each letter, the same in all inputs."""
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        shape = inputs[tensor.name].shape
        fits = len(shape) == len(tensor.shape) and all(
            size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
            for dim, size in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            expected = [
                f"{dim} = {sizes[dim]}" if dim in sizes else dim for dim in tensor.shape
            ]
            raise invalid_argument(
                f"input {tensor.name} of signature {spec.name} has shape "
                f"{list(shape)}, expected [{', '.join(map(str, expected))}]"
            )
    return sizes


def _check_reply(
    spec: SignatureSpec, sizes: Mapping[str, int], outputs: Sequence[str]
) -> None:
    total = 0
    for tensor in spec.outputs:
        if (outputs and tensor.name not in outputs) or tensor.dtype == "string":
            continue
        dims = [_evaluated(spec, dim, sizes) for dim in tensor.shape]
        total += math.prod(dims) * tensor.numpy_dtype().itemsize
    if total > MESSAGE_LIMIT:
        raise invalid_argument(
            f"the reply of signature {spec.name} would have {total} bytes, at most "
            f"{MESSAGE_LIMIT} are possible: send fewer rows or tokens at a time"
        )


def _evaluated(spec: SignatureSpec, dim: Dim, sizes: Mapping[str, int]) -> int:
    """A size, a letter's, or the contract's one sum, ``S+N-1``."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    return sizes["S"] + (tokens_per_call(spec.name) or 1) - 1
