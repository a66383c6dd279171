"""Sessions in numpy: slots with tickets, as ``contract/signatures.py`` defines them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import numpy as np
from optserve.runtime.contract import (
    Manifest,
    generate_name,
    session_tokens_per_call,
)

Tensors = dict[str, np.ndarray]


class NumpySessions:
    """The slots of one server process: a new object is a server that restarted.

    ``run`` computes the explicit signature of a name and inputs.
    """

    def __init__(
        self, manifest: Manifest, run: Callable[[str, Tensors], Tensors]
    ) -> None:
        slots, positions = manifest.sessions["slots"], manifest.sessions["positions"]
        self.layout = manifest.cache_layout
        self.positions = positions
        self.rows = np.full((slots, positions, *self.layout.row_shape), 9e9, np.float32)
        self.tickets = np.zeros(slots, np.int64)
        self.used = np.zeros(slots, np.int64)
        self.written = np.zeros(slots, np.int32)
        self._run = run
        self._lock = threading.Lock()

    def __call__(self, name: str, inputs: Tensors) -> Tensors:
        """Outputs of the ``session_…`` signature called ``name``."""
        with self._lock:
            action = getattr(self, f"_{name.removeprefix('session_')}", None)
            if action is not None:
                return action(**inputs)
            return self._generate(session_tokens_per_call(name), **inputs)

    def evict(self, slot: int) -> None:
        """As if another client had opened it."""
        self.tickets[slot] = secrets.randbits(62) + 1

    # --- signatures -----------------------------------------------------------------

    def _open(self, row: np.ndarray) -> Tensors:
        keys = [str(n) if n else f"row {b}" for b, n in enumerate(row.tolist())]
        numbers, index = np.unique(keys, return_inverse=True)
        oldest = np.argsort(self.used, kind="stable")
        given = oldest[np.arange(len(numbers)) % len(oldest)]
        tickets = [secrets.randbits(62) + 1 for _ in given]
        for slot, ticket in zip(given, tickets, strict=True):
            self.tickets[slot], self.written[slot] = ticket, 0
            self.used[slot] = self.used.max() + 1
        slot, ticket = given[index], np.array(tickets, np.int64)[index]
        return {"slot": slot.astype(np.int32), "ticket": ticket}

    def _generate(self, N, slot, ticket, cache_length, max_new_tokens, **rest):
        held = self._held(slot, ticket, cache_length)
        explicit = {
            **rest,
            **self._cache(slot, np.where(held, cache_length, 0)),
            "max_new_tokens": np.where(held, max_new_tokens, 0).astype(np.int32),
        }
        outputs = self._run(generate_name(N), explicit)
        fed = rest["input_length"] + outputs["count"] - 1
        rows = outputs.pop("new_cache")
        self._put(held, slot, cache_length, rows, fed)
        outputs["tokens"][~held] = -1
        return {**outputs, "alive": held.astype(np.int32)}

    def _decode(self, slot, ticket, cache_length, **rest):
        held = self._held(slot, ticket, cache_length)
        cache = self._cache(slot, np.where(held, cache_length, 0))
        outputs = self._run("decode", {**rest, **cache})
        rows = outputs.pop("new_cache")
        self._put(held, slot, cache_length, rows, rest["input_length"])
        outputs["logits"][~held] = 0
        return {**outputs, "alive": held.astype(np.int32)}

    def _write(self, slot, ticket, cache, start, cache_length):
        held = self._held(slot, ticket, start)
        self._put(held, slot, start, cache, cache_length)
        return {"alive": held.astype(np.int32)}

    def _read(self, slot, ticket, start, size):
        held = self._held(slot, ticket, start + size)
        cache = np.zeros((len(slot), size.max(), *self.layout.row_shape), np.float32)
        for b in np.flatnonzero(held):
            cache[b, : size[b]] = self.rows[slot[b], start[b] : start[b] + size[b]]
        return {"cache": cache, "alive": held.astype(np.int32)}

    def _copy(self, slot, ticket, to_slot, to_ticket, cache_length):
        held = self._held(slot, ticket, cache_length)
        held &= self._held(to_slot, to_ticket, 0 * cache_length)
        rows = self._cache(slot, np.where(held, cache_length, 0))["cache"]
        self._put(held, to_slot, 0 * cache_length, rows, cache_length)
        return {"alive": held.astype(np.int32)}

    # --- slots ----------------------------------------------------------------------

    def _held(self, slot, ticket, length) -> np.ndarray:
        """Which rows of a call hold their slot, written to ``length`` at least."""
        known = (slot >= 0) & (slot < len(self.tickets))
        at = np.where(known, slot, 0)
        held = known & (ticket > 0) & (self.tickets[at] == ticket)
        held &= self.written[at] >= length
        self.used[slot[held]] = self.used.max() + 1
        return held

    def _cache(self, slot, length) -> Tensors:
        longest = int(length.max())
        at = np.clip(slot, 0, len(self.rows) - 1)
        length = length.astype(np.int32)
        return {"cache": self.rows[at, :longest], "cache_length": length}

    def _put(self, held, slot, start, rows, count) -> None:
        for b in np.flatnonzero(held):
            end = start[b] + max(count[b], 0)
            assert end <= self.positions, "more rows than a slot has"
            self.rows[slot[b], start[b] : end] = rows[b, : end - start[b]]
            self.written[slot[b]] = max(self.written[slot[b]], end)
