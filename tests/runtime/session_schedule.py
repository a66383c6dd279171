"""Random calls of sessions, compared with explicit caches after each of them.

``call(name, **inputs)`` gives the outputs of any model or server of the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from optserve.runtime.contract import (
    Manifest,
    generate_name,
    session_generate_name,
    signature,
)

Call = Callable[..., dict[str, np.ndarray]]

_OFF = {"top_p": 1, "repetition_penalty": 1, "max_new_tokens": 0}
_NONE = ("history", "stop_ids", "bias_ids")
"""Lists of ids, of which −1 is none."""


def off(manifest: Manifest, N: int, B: int) -> dict[str, np.ndarray]:
    """Inputs of ``generate_{N}`` after the cache's, all of them switched off."""
    spec = signature(generate_name(N), manifest.cache_layout)
    names = [tensor.name for tensor in spec.inputs]
    inputs = {}
    for tensor in spec.inputs[names.index("cache_length") + 1 :]:
        shape = [B, *(d if isinstance(d, int) else 1 for d in tensor.shape[1:])]
        value = -1 if tensor.name in _NONE else _OFF.get(tensor.name, 0)
        inputs[tensor.name] = np.full(shape, value, tensor.numpy_dtype())
    return inputs


@dataclass(eq=False)
class Session:
    """One that was opened, and what its slot should hold."""

    slot: int
    ticket: int
    rows: np.ndarray  # [written, *row_shape]
    alive: bool = True


class Schedule:
    """Sessions of one caller, and what they must answer.

    Args:
        call: of the model under test, for explicit signatures as well.
        manifest: its manifest.
        seed: of the schedule.
        alone: nobody else opens sessions, so it is known whose slot is taken.
    """

    fewest_slots = 0
    """Of an explicit cache: as many as a session reads, or a size that can be joined
    with other callers'."""

    def __init__(
        self, call: Call, manifest: Manifest, seed: int, *, alone: bool = True
    ) -> None:
        self.call, self.manifest, self.alone = call, manifest, alone
        self.random = np.random.default_rng(seed)
        self.positions = manifest.sessions["positions"]
        self.opened: list[Session] = []
        self.used: list[int] = []
        """Slots by their last use, the oldest first."""

    def run(self, steps: int) -> None:
        """So many random calls, each compared."""
        self.open(1)
        actions = [self.generate, self.decode, self.write, self.read, self.copy]
        for _ in range(steps):
            if self.random.random() < 0.15:
                self.open(int(self.random.integers(1, 3)))
            else:
                actions[self.random.integers(len(actions))]()

    # --- calls ----------------------------------------------------------------------

    def open(self, count: int) -> list[Session]:
        """``count`` slots at once, those that were used longest ago."""
        numbers = self.random.integers(1, 2**31, count, np.int32)
        numbers = np.append(numbers, numbers[:1])  # as a batcher repeats one
        reply = self.call("session_open", row=numbers)
        slots, tickets = reply["slot"].tolist(), reply["ticket"].tolist()
        assert (slots[-1], tickets[-1]) == (slots[0], tickets[0])
        if len(self.used) == self.manifest.sessions["slots"] and self.alone:
            assert sorted(slots[:-1]) == sorted(self.used[:count])
        assert len(set(slots)) == count
        for session in self.opened:
            session.alive &= session.slot not in slots
        row_shape = self.manifest.cache_layout.row_shape
        new = [
            Session(slot, ticket, np.zeros((0, *row_shape), np.float32))
            for slot, ticket in zip(slots[:-1], tickets[:-1], strict=True)
        ]
        self.opened = [*self.opened, *new][-6:]
        for slot in slots[:-1]:
            self._touch(slot)
        return new

    def generate(self) -> None:
        """Tokens and rows as by explicit caches, and again the same."""
        N = int(self.random.choice(self.manifest.generate))
        sessions = self._some()
        B = len(sessions)
        cached, ids, fed = self._prompts(sessions, more=N - 1)
        random = self.random
        sampling = off(self.manifest, N, B) | {
            "max_new_tokens": random.integers(0, N + 1, B, np.int32),
            "seed": random.integers(-9, 9, (B, 2), np.int32),
            "temperature": random.choice([0, 0.9], B).astype(np.float32),
            "top_p": random.choice([1, 0.9], B).astype(np.float32),
        }
        inputs = {"input_ids": ids, "input_length": fed, **sampling}
        expected = self.call(
            generate_name(N), **self._explicit(inputs, sessions, cached)
        )
        new_cache = expected.pop("new_cache")
        name = session_generate_name(N)
        slots = self._slots(sessions)
        once = self.call(name, **slots, cache_length=cached, **inputs)
        self._compare(once, expected, sessions)
        again = self.call(name, **slots, cache_length=cached, **inputs)
        self._compare(again, expected, sessions)
        self._written(sessions, cached, new_cache, fed + expected["count"] - 1)

    def decode(self) -> None:
        """Logits as by explicit caches."""
        sessions = self._some()
        cached, ids, fed = self._prompts(sessions)
        inputs = {"input_ids": ids, "input_length": fed}
        expected = self.call("decode", **self._explicit(inputs, sessions, cached))
        new_cache = expected.pop("new_cache")
        reply = self.call(
            "session_decode", **self._slots(sessions), cache_length=cached, **inputs
        )
        self._compare(reply, expected, sessions)
        self._written(sessions, cached, new_cache, fed)

    def write(self) -> None:
        """Rows that are read back."""
        sessions = self._some()
        start = self._lengths(sessions)
        most = self.positions - int(start.max())
        B, V = len(sessions), self.manifest.vocab_size
        count = self.random.integers(0, most + 1, B, np.int32)
        ids = self.random.integers(4, V, (B, max(most, 1)), np.int32)
        length = np.full(B, ids.shape[1], np.int32)
        rows = self.call("prefill", input_ids=ids, input_length=length)["new_cache"]
        slots = self._slots(sessions)
        reply = self.call(
            "session_write", **slots, cache=rows, start=start, cache_length=count
        )
        self._compare(reply, {}, sessions)
        self._written(sessions, start, rows, count)

    def read(self) -> None:
        """What was written."""
        sessions = self._some()
        size = self._lengths(sessions)
        start = self.random.integers(0, size + 1).astype(np.int32)
        reply = self.call(
            "session_read", **self._slots(sessions), start=start, size=size - start
        )
        rows = reply.pop("cache")
        self._compare(reply, {}, sessions)
        for b, session in enumerate(sessions):
            end = size[b] if session.alive else start[b]
            expected = session.rows[start[b] : end]
            self.equal(rows[b, : len(expected)], expected)
            self.equal(rows[b, len(expected) :], 0)

    def copy(self) -> None:
        """A prefix, to another session or to itself."""
        (source, *_), (target, *_) = self._some(), self._some()
        length = self._lengths([source])
        reply = self.call(
            "session_copy",
            **self._slots([source]),
            to_slot=np.array([target.slot], np.int32),
            to_ticket=np.array([target.ticket], np.int64),
            cache_length=length,
        )
        alive = source.alive and target.alive
        assert reply["alive"].tolist() == [alive]
        for session in (source, target):
            if session.alive:
                self._touch(session.slot)
        if alive:
            rows = source.rows[None, : length[0]]
            self._written([target], 0 * length, rows, length)

    # --- what is expected -----------------------------------------------------------

    def equal(self, actual: np.ndarray, expected: Any) -> None:
        """Bit by bit: calls of the same shapes compute the same."""
        np.testing.assert_array_equal(actual, expected)

    def _some(self) -> list[Session]:
        """Up to three sessions, live or not."""
        count = int(self.random.integers(1, min(3, len(self.opened)) + 1))
        return list(self.random.choice(np.array(self.opened), count, replace=False))

    def _lengths(self, sessions: list[Session]) -> np.ndarray:
        """As much as each holds, or an earlier point of it."""
        most = np.array([len(s.rows) for s in sessions])
        earlier = self.random.integers(0, most + 1)
        return np.where(self.random.random(len(most)) < 0.5, most, earlier).astype("i4")

    def _prompts(self, sessions: list[Session], more: int = 0):
        """Cached lengths, tokens to feed and their number, with room for ``more``."""
        cached = np.minimum(self._lengths(sessions), self.positions - more - 1)
        room = self.positions - more - int(cached.max())
        fed = self.random.integers(1, min(room, 9) + 1, len(cached), np.int32)
        shape = (len(cached), fed.max())
        ids = self.random.integers(4, self.manifest.vocab_size, shape, np.int32)
        return cached.astype(np.int32), ids, fed

    def _slots(self, sessions: list[Session]) -> dict[str, np.ndarray]:
        return {
            "slot": np.array([s.slot for s in sessions], np.int32),
            "ticket": np.array([s.ticket for s in sessions], np.int64),
        }

    def _explicit(self, inputs, sessions, cached) -> dict[str, np.ndarray]:
        """The same call with caches; a session that is void makes nothing."""
        alive = np.array([s.alive for s in sessions])
        cached = np.where(alive, cached, 0).astype(np.int32)
        row_shape = self.manifest.cache_layout.row_shape
        size = max(cached.max(), self.fewest_slots)
        cache = np.full((len(cached), size, *row_shape), 7e7, np.float32)
        for b, session in enumerate(sessions):
            cache[b, : cached[b]] = session.rows[: cached[b]]
        explicit = {**inputs, "cache": cache, "cache_length": cached}
        if "max_new_tokens" in inputs:
            most = np.where(alive, inputs["max_new_tokens"], 0)
            explicit["max_new_tokens"] = most.astype(np.int32)
        return explicit

    def _compare(self, reply, expected, sessions: list[Session]) -> None:
        assert reply["alive"].tolist() == [s.alive for s in sessions]
        for b, session in enumerate(sessions):
            for name in expected if session.alive else ():
                self.equal(reply[name][b], expected[name][b])
            if not session.alive and "tokens" in reply:
                assert (reply["tokens"][b] == -1).all()
                assert reply["count"][b] == 0
        for slot in sorted(s.slot for s in sessions if s.alive):
            self._touch(slot)

    def _written(self, sessions, start, rows, count) -> None:
        for b, session in enumerate(sessions):
            if session.alive:
                end = start[b] + max(count[b], 0)
                kept = session.rows[: start[b]], rows[b, : end - start[b]]
                session.rows = np.concatenate([*kept, session.rows[end:]])

    def _touch(self, slot: int) -> None:
        self.used = [*(s for s in self.used if s != slot), slot]
