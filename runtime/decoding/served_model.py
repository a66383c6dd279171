"""What the client knows of a served model: its manifest, sizes and limits.

Sizes of calls come from here alone. Where the manifest lists buckets, only those sizes
are sent; where it lists none, sizes are rounded up a little, so that calls of unrelated
generations have equal shapes and a server's batcher can merge them.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..contract import (
    INT32_LIMIT,
    MESSAGE_LIMIT,
    CacheLayout,
    Manifest,
    SignatureSpec,
    signature,
    tokens_per_call,
)
from ..errors import IncompatibleModel, InvalidRequest

_MAKES_ROWS = (
    *("checkpoint_digest", "contract_version", "cache_dtype"),
    *("weights_dtype", "framework", "compiler", "config"),
)
"""Fields of the manifest that decide what numbers a cache row holds."""

_SLACK = 1 << 20  # bytes left for names, shapes and the small tensors of a message
_PROMPT_STEP = 8
_CACHE_STEP = 32
_LARGEST_PROMPT_CHUNK = 512  # tokens fed by one call where the manifest sets no size


@dataclass(frozen=True)
class ServedModel:
    """One version of a served model.

    ``pads_rows`` says whether a call's rows are padded to the manifest's batch sizes
    where it is planned, or later, when calls have been joined.
    """

    manifest: Manifest
    version: int = 0
    pads_rows: bool = True

    @property
    def model_id(self) -> str:
        """A short text that two exports share only if they give the same tokens.

        Where and with what an export was written does not count.
        """
        return self._model_id

    @cached_property
    def _model_id(self) -> str:
        told = replace(self.manifest, tool_versions={}, files={}, export_options={})
        return hashlib.sha256(told.to_json().encode()).hexdigest()[:16]

    @cached_property
    def rows_identity(self) -> str:
        """What rows must have in common to stand for each other; "" if unknown."""
        manifest = self.manifest
        facts = {name: getattr(manifest, name) for name in _MAKES_ROWS}
        return json.dumps(facts, sort_keys=True) if manifest.checkpoint_digest else ""

    @cached_property
    def layout(self) -> CacheLayout:
        """The cache's layout."""
        return self.manifest.cache_layout

    def signature(self, name: str) -> SignatureSpec:
        """The contract's signature with this model's sizes.

        Raises:
            KeyError: the contract has no such signature.
        """
        if name not in self._signatures:
            self._signatures[name] = signature(
                name,
                self.layout,
                version=self.manifest.contract_version,
                vocab_size=self.manifest.vocab_size,
                hidden_size=self.manifest.output_width,
            )
        return self._signatures[name]

    @cached_property
    def _signatures(self) -> dict[str, SignatureSpec]:
        return {}

    @cached_property
    def generate_sizes(self) -> tuple[int, ...]:
        """N of the ``generate_{N}`` signatures, ascending."""
        sizes = (tokens_per_call(name) for name in self.manifest.signatures)
        return tuple(sorted(n for n in sizes if n is not None))

    @property
    def positions(self) -> int:
        """Most tokens that a sequence may have, prompt included."""
        buckets = self.manifest.cache_buckets
        limit = self.manifest.max_positions
        return min(limit, buckets[-1] + 1) if buckets else limit

    @cached_property
    def largest_prompt_chunk(self) -> int:
        """Most tokens that one call feeds to a row."""
        buckets = self.manifest.prompt_buckets
        limit = buckets[-1] if buckets else min(_LARGEST_PROMPT_CHUNK, self.positions)
        fits = (MESSAGE_LIMIT - _SLACK) // self.layout.row_bytes
        usable = [b for b in buckets if b <= fits] if buckets else [min(limit, fits)]
        if not usable or usable[-1] < 1:
            raise IncompatibleModel(
                f"one token's cache row has {self.layout.row_bytes} bytes and the "
                "smallest call would pass the 2 GiB message limit: export with a "
                "smaller cache dtype or smaller prompt buckets"
            )
        return usable[-1]

    def largest_size(self, name: str) -> int:
        """The largest S of a signature's calls, which others may be joined with."""
        if name in ("score", "embed"):
            return self.manifest.max_positions
        return self.largest_prompt_chunk

    def prompt_size(self, tokens: int) -> int:
        """S for a call that feeds up to ``tokens`` tokens to a row."""
        if tokens == 1:
            return 1
        return _size(tokens, self.manifest.prompt_buckets, _PROMPT_STEP, self.positions)

    def whole_size(self, tokens: int) -> int:
        """S for a call that needs a row's whole text, however long.

        The graph takes any size; one beyond the largest prompt size costs a compiled
        export a compilation at its first use, so only multiples of it are sent.
        """
        buckets = self.manifest.prompt_buckets
        if not buckets or tokens <= buckets[-1]:
            return self.prompt_size(tokens)
        chunks = -(-tokens // buckets[-1])
        return max(tokens, min(chunks * buckets[-1], self.manifest.max_positions))

    def cache_size(self, slots: int) -> int:
        """C for rows of up to ``slots`` cached tokens; at least 1."""
        return _size(
            max(slots, 1), self.manifest.cache_buckets, _CACHE_STEP, self.positions
        )

    def batch_size(self, rows: int) -> int:
        """B for a call of so many rows, where it is planned."""
        return self.padded_rows(rows) if self.pads_rows else rows

    def padded_rows(self, rows: int) -> int:
        """The smallest of the export's batch sizes that holds so many rows."""
        sizes = self.manifest.batch_sizes
        return sizes[bisect_left(sizes, rows)] if sizes and rows <= sizes[-1] else rows

    def padding(self, rows: int, size: int) -> np.ndarray:
        """``[rows, size]`` pad tokens, to be written over.

        Raises:
            IncompatibleModel: no message holds so many; only sizes that a server made
                up come to that.
        """
        if 4 * rows * size > MESSAGE_LIMIT:
            raise IncompatibleModel(
                f"the model's smallest call has {rows} rows of {size} tokens, more "
                "than one message may have (2 GiB): export it with smaller sizes"
            )
        return np.full((rows, size), self.manifest.pad_token_id, np.int32)

    def rows_that_fit(self, new: int, cached: int, *, generated: int = 0) -> int:
        """Most rows of a call that feeds S = ``new`` tokens to caches of ``cached``.

        Request and reply stay below 2 GiB, the tokens within the export's limit.
        """
        row = self.layout.row_bytes
        slots = self.cache_size(cached) if cached or generated else 0
        received = (new + generated) * row + 4 * self.manifest.vocab_size
        fits = (MESSAGE_LIMIT - _SLACK) // max(slots * row, received, 1)
        if fits < 1:
            raise InvalidRequest(
                f"a sequence of {cached + new} tokens has a cache of "
                f"{(cached + new) * row} bytes, more than one message may have "
                "(2 GiB): use shorter sequences or export with a smaller cache dtype"
            )
        return self.whole_batch(min(fits, self.rows_within_limit(max(new, slots))))

    def rows_within_limit(self, size: int) -> int:
        """Most rows of ``size`` tokens or cache slots each that the export takes."""
        most = self.manifest.max_tokens_per_call or INT32_LIMIT
        if size > most:
            raise InvalidRequest(
                f"a row of {size} tokens exceeds the {most} that this export takes in "
                "one call: use shorter texts or sequences"
            )
        return most // max(size, 1)

    def whole_batch(self, rows: int) -> int:
        """As many rows, or fewer that fill one of the export's batch sizes."""
        sizes = [size for size in self.manifest.batch_sizes if size <= rows]
        return max(sizes, default=rows)

    def rows_per_message(self, rows: int) -> int:
        """Most cache rows that a message with so many rows of the batch may carry."""
        fits = (MESSAGE_LIMIT - _SLACK) // (self.layout.row_bytes * rows)
        buckets = [size for size in self.manifest.cache_buckets if size <= fits]
        limit = buckets[-1] if buckets else fits // _CACHE_STEP * _CACHE_STEP or fits
        return max(1, min(limit, self.positions))

    def require(self, name: str, why: str) -> None:
        """Raise ``IncompatibleModel`` unless the export has the signature."""
        if name not in self.manifest.signatures:
            raise IncompatibleModel(
                f"this export has no `{name}` signature, which {why} needs: "
                f"it has {', '.join(sorted(self.manifest.signatures))}"
            )


def _size(tokens: int, buckets: Sequence[int], step: int, limit: int) -> int:
    """The smallest bucket that holds ``tokens``, or the next multiple of ``step``."""
    if not buckets:
        return max(tokens, min(-(-tokens // step) * step, limit))
    index = bisect_left(buckets, tokens)
    if index == len(buckets):
        raise InvalidRequest(
            f"{tokens} tokens don't fit the largest size of the export, "
            f"{buckets[-1]}: export with larger buckets"
        )
    return buckets[index]
