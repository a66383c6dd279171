"""Which test cases an export is called with: signatures, and shapes where errors hide.

A test case is made of fixed sequences of random tokens: each of its rows takes ``past``
tokens of a sequence as already cached and gives the next ``new`` ones. So the source
model needs to read each sequence once, and two exports can be called alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...runtime.contract import Manifest, tokens_per_call
from ..savedmodel.buckets import LOOP_PAGE

TOKEN_SEQUENCES = 4
"""Sequence 0 is long; the others are for rows of a batch."""
ODD_BATCH = 3
MOST_CACHE = 96 * 1024**2
"""Bytes of the fullest cache tried, float32, unless more is asked for: with it a
verification's time and memory stay in proportion to the weights."""
LEAST_TOKENS = 136
"""Tokens that are tried whatever they take, those of a generation not counted: past the
first size that is compiled for by default."""
MOST_TOKENS_AT_ONCE = 512
"""Tokens given in one call: attention's memory grows with it."""
_ROWS_TOGETHER = 15
"""Rows of all matrix products for the usual batch: from 16 on oneDNN packs the weights
for each, which takes three times as long as multiplying few rows by them: 16 rows took
an AMD EPYC (Zen 4) with 2 vCPUs 26 ms, 15 rows 7 (``tests/benchmarks/claims.py
packed-rows``)."""


@dataclass(frozen=True)
class Row:
    """One row of a test case: ``new`` tokens of a sequence, ``past`` of it cached."""

    token_sequence: int
    past: int
    new: int


@dataclass(frozen=True)
class TestCase:
    """One call: a signature, its rows, and the sizes that they are padded to.

    ``slots`` is C; None for signatures without a cache. ``left`` pads on the left.
    """

    __test__ = False  # not one of pytest's

    signature: str
    rows: tuple[Row, ...]
    size: int
    slots: int | None = None
    left: bool = False

    def __str__(self) -> str:
        lengths = "+".join(
            f"{row.past}|{row.new}" if self.slots is not None else str(row.new)
            for row in self.rows
        )
        cache = "" if self.slots is None else f" C={self.slots}"
        return f"B={len(self.rows)} S={self.size}{cache} ({lengths})"


@dataclass(frozen=True)
class Plan:
    """All test cases for a model."""

    cases: tuple[TestCase, ...]
    vocab_size: int
    prompt_buckets: tuple[int, ...]
    cache_buckets: tuple[int, ...]
    pad_token_id: int = 1
    notes: tuple[str, ...] = ()

    @cached_property
    def token_sequences(self) -> list[np.ndarray]:
        """The tokens, int32: the same for every model of a vocabulary."""
        random = np.random.default_rng(20220502)
        return [
            random.integers(0, self.vocab_size, max(self.length(i), 1), np.int32)
            for i in range(TOKEN_SEQUENCES)
        ]

    def length(self, token_sequence: int) -> int:
        """Tokens of a sequence that any test case uses."""
        return self._longest(token_sequence, lambda row: row.past + row.new)

    def longest_past(self, token_sequence: int) -> int:
        """Tokens of a sequence that any test case has cached."""
        return self._longest(token_sequence, lambda row: row.past)

    def new_tokens(self, row: Row) -> np.ndarray:
        """The tokens that a row gives."""
        return self.token_sequences[row.token_sequence][row.past : row.past + row.new]

    def _longest(self, token_sequence: int, length: Callable[[Row], int]) -> int:
        rows = (row for case in self.cases for row in case.rows)
        return max(
            (length(row) for row in rows if row.token_sequence == token_sequence),
            default=0,
        )


def make_plan(
    manifest: Manifest, *others: Manifest, max_length: int | None = None
) -> Plan:
    """Test cases for an export: smallest, odd lengths, edges of buckets, batches.

    Args:
        manifest: of the export to call.
        others: of exports that are called alike; only signatures that all have.
        max_length: longest sequence; if None the model's positions, or as many as
            ``MOST_CACHE`` holds.
    """
    everyone = (manifest, *others)
    positions = min(m.max_positions for m in everyone)
    limit = min(positions, max_length or affordable_length(manifest))
    notes = ()
    if limit < positions:
        notes = (f"sequences of up to {limit} of {positions} positions were tried",)
    shapes = _Shapes(
        limit=limit,
        prompts=[b for b in manifest.prompt_buckets if b <= limit],
        caches=[c for c in manifest.cache_buckets if c <= positions],
        prompt_edges=[s for s in manifest.compiled_prompts if 1 < s <= limit],
        pages=_page(manifest),
        batch=min((b for b in manifest.batch_sizes if b > 1), default=ODD_BATCH),
    )
    names = [n for n in manifest.signatures if all(n in m.signatures for m in everyone)]
    version = min(m.contract_version for m in everyone)
    cases = [case for name in names for case in _cases(name, shapes, version)]
    return Plan(
        cases=tuple(dict.fromkeys(cases)),
        vocab_size=min(m.vocab_size for m in everyone),
        prompt_buckets=tuple(shapes.prompts),
        cache_buckets=tuple(shapes.caches),
        pad_token_id=manifest.pad_token_id,
        notes=notes,
    )


def affordable_length(manifest: Manifest) -> int:
    """The longest sequence whose cache ``MOST_CACHE`` holds, but no shorter than the
    ``LEAST_TOKENS``."""
    row = replace(manifest.cache_layout, dtype="float32").row_bytes
    return max(MOST_CACHE // row, LEAST_TOKENS + max(manifest.generate, default=0))


def fit(size: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds ``size``, the size itself without buckets."""
    if not buckets:
        return size
    return min((b for b in buckets if b >= size), default=None)


@dataclass(frozen=True)
class _Shapes:
    """Sizes to call with: buckets that a request must have, edges that it may cross."""

    limit: int
    prompts: list[int]
    caches: list[int]
    prompt_edges: list[int]
    pages: list[int]
    batch: int

    def case(self, name: str, rows: Sequence[Row], *, cache: bool, left=False):
        """A test case if its rows fit the model and the buckets, else None."""
        generated = tokens_per_call(name) or 0
        if any(row.past + row.new + generated > self.limit for row in rows):
            return None
        longest = max(row.new for row in rows)
        # One token at a time is what `decode` is for, whatever the prompt's buckets.
        size = longest if cache and longest == 1 else fit(longest, self.prompts)
        slots = fit(max(row.past for row in rows), self.caches) if cache else None
        if size is None or (cache and slots is None):
            return None
        return TestCase(name, tuple(rows), size, slots, left)

    def lengths(self) -> list[int]:
        """Prompt lengths: one token, odd ones, on and over edges, the longest."""
        on = self.prompts[:2] + self.prompts[-1:]
        on += self.prompt_edges[:1] + self.prompt_edges[-1:]
        most = max(self.prompts, default=self.limit)
        over = [b + 1 for b in self.prompts[:1] + self.prompt_edges[:1] if b < most]
        return sorted({min(n, self.limit) for n in (1, 7, *on, *over)})

    def pasts(self) -> list[int]:
        """Lengths of caches on the edges of their sizes and pages, and one over."""
        on = self.caches[:2] + self.pages
        over = [c + 1 for c in self.pages]
        return [c for c in (*on, *over) if c < self.limit]

    def mixed(self, past: bool, rows: int) -> list[Row]:
        """Rows of a batch, of different lengths; one with an empty cache."""
        most = min(self.limit // 4, *self.prompts[-1:], _ROWS_TOGETHER // ODD_BATCH)
        return [
            Row(
                token_sequence=i % TOKEN_SEQUENCES,
                past=(0, 5, 2, 9)[i % 4] if past else 0,
                new=1 + (4 * i) % max(2, most),
            )
            for i in range(rows)
        ]


def _page(manifest: Manifest) -> list[int]:
    """The slots of one page, where a compiled graph reads the cache in pages."""
    if manifest.compiler == "none":
        return []
    return [max(manifest.compiled_prompts, default=LOOP_PAGE)]


def _cases(name: str, shapes: _Shapes, version: int) -> Iterator[TestCase]:
    if name in ("describe", "tokenizer"):
        candidates = [TestCase(name, (Row(0, 0, 0),) * b, 0) for b in (1, ODD_BATCH)]
    elif name.startswith("session_"):
        candidates = []  # compared with explicit caches: sessions.py
    elif name == "decode":
        candidates = _decode_cases(shapes)
    elif tokens_per_call(name) is not None:
        singles = [Row(0, 0, 1), Row(0, 0, 7), Row(0, 6, 1)]
        singles += [Row(0, c, 1) for c in shapes.pasts()[-2:]]
        rows = [*([row] for row in singles), shapes.mixed(True, shapes.batch)]
        candidates = [shapes.case(name, r, cache=True) for r in rows]
    elif name == "score" and version > 1:
        singles = [Row(0, 0, n) for n in shapes.lengths()[:4]]
        singles += [Row(0, 6, 5), *(Row(0, c, 2) for c in shapes.pasts()[-1:])]
        rows = [*([row] for row in singles), shapes.mixed(True, shapes.batch)]
        candidates = [shapes.case(name, r, cache=True) for r in rows]
    else:
        candidates = _prompt_cases(name, shapes)
    yield from (case for case in candidates if case is not None)


def _prompt_cases(name: str, shapes: _Shapes) -> list[TestCase | None]:
    """For signatures that take whole texts."""
    lengths = shapes.lengths()
    if name != "prefill":
        lengths = lengths[:4]  # the longest are for one of them
    elif not shapes.prompts:
        lengths = sorted({*lengths, min(shapes.limit, MOST_TOKENS_AT_ONCE)})
    mixed = shapes.mixed(False, shapes.batch)
    cases = [
        shapes.case(name, rows, cache=False)
        for rows in [*([Row(0, 0, n)] for n in lengths), mixed]
    ]
    if name == "serving_default":
        cases.append(shapes.case(name, mixed, cache=False, left=True))
    return cases


def _decode_cases(shapes: _Shapes) -> list[TestCase | None]:
    def case(*rows: Row) -> TestCase | None:
        return shapes.case("decode", rows, cache=True)

    full = min(shapes.limit, max(shapes.caches, default=shapes.limit) + 1)
    even = shapes.mixed(True, shapes.batch)
    return [
        case(Row(0, 0, 1)),  # an empty cache
        case(Row(0, 0, 7)),
        case(Row(0, 5, 1)),  # odd lengths
        case(Row(0, 5, 4)),
        *(case(Row(0, c, 1)) for c in shapes.pasts()),
        case(Row(0, full - 1, 1)),  # full to the end
        case(*(Row(r.token_sequence, r.past, 1) for r in even)),
        case(*shapes.mixed(True, ODD_BATCH)),
    ]
