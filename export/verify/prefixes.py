"""The cache that test cases continue from, as the export itself made it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ...runtime.contract import CacheLayout
from .plan import MOST_TOKENS_AT_ONCE, Plan, Row, TestCase, fit

NOISE = 1e4
"""In slots that nobody may read."""

Call = Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""From a signature's name and inputs to its outputs."""


class Prefixes:
    """Cache rows [T, *row_shape] of the beginnings of a plan's token sequences."""

    def __init__(self, plan: Plan, layout: CacheLayout, call: Call) -> None:
        self._plan, self._row_shape, self._call = plan, layout.row_shape, call
        self._rows: dict[int, np.ndarray] = {}
        self._keeping = threading.Lock()

    def keep(self, case: TestCase, new_cache: np.ndarray) -> None:
        """Keep what a prompt by itself left in the cache, if it is the longest yet."""
        row, *others = case.rows
        with self._keeping:
            if not others and row.new > len(self._of(row.token_sequence)):
                self._rows[row.token_sequence] = new_cache[0, : row.new]

    def complete(self, token_sequence: int) -> None:
        """Cache a sequence as far as any test case needs it."""
        length = self._plan.longest_past(token_sequence)
        cached = self._of(token_sequence)
        if len(cached) >= length:
            return
        cache = self._zeros(length)
        cache[: len(cached)] = cached
        # Known from here on, and zeros where a call fails.
        self._rows[token_sequence] = cache
        tokens = self._plan.token_sequences[token_sequence][:length]
        longest = max(self._plan.prompt_buckets, default=MOST_TOKENS_AT_ONCE)
        for begin in range(len(cached), length, longest):
            chunk = tokens[begin : begin + longest]
            rows = self._next_rows(chunk, cache[:begin])
            cache[begin : begin + len(chunk)] = rows

    def cache(self, case: TestCase) -> dict[str, np.ndarray]:
        """A test case's inputs ``cache`` and ``cache_length``."""
        slots = case.slots or 0
        past = np.array([row.past for row in case.rows], np.int32)
        if len(case.rows) == 1 and case.rows[0].past == slots:
            return {"cache": self._past(case.rows[0])[None], "cache_length": past}
        shape = (len(case.rows), slots, *self._row_shape)
        cache = np.full(shape, NOISE, np.float32)
        for b, row in enumerate(case.rows):
            cache[b, : row.past] = self._past(row)
        return {"cache": cache, "cache_length": past}

    def _past(self, row: Row) -> np.ndarray:
        return self._of(row.token_sequence)[: row.past]

    def _of(self, token_sequence: int) -> np.ndarray:
        return self._rows.get(token_sequence, self._zeros(0))

    def _zeros(self, length: int) -> np.ndarray:
        return np.zeros((length, *self._row_shape), np.float32)

    def _next_rows(self, chunk: np.ndarray, cached: np.ndarray) -> np.ndarray:
        """Cache rows of ``chunk``, given those of all tokens before it."""
        size = fit(len(chunk), self._plan.prompt_buckets) or len(chunk)
        ids = np.full((1, size), self._plan.pad_token_id, np.int32)
        ids[0, : len(chunk)] = chunk
        inputs = {"input_ids": ids, "input_length": np.array([len(chunk)], np.int32)}
        name = "prefill"
        if len(cached):
            name = "decode"
            slots = fit(len(cached), self._plan.cache_buckets) or len(cached)
            past = self._zeros(slots)
            past[: len(cached)] = cached
            inputs["cache"] = past[None]
            inputs["cache_length"] = np.array([len(cached)], np.int32)
        return self._call(name, inputs)["new_cache"][0, : len(chunk)]
