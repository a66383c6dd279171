"""Which slots of which servers a client holds, and whose turn it is. No I/O.

A server keeps the caches of a few sessions. The client opens a slot once, gives it to
one sequence at a time, and remembers what tokens its rows are of, so that the next turn
of a conversation, or a prompt that begins alike, goes on in it. Who finds no slot free
waits in line. Other clients may take a slot away at any time (the server gives them the
one that was used longest ago); each such loss makes this client ask for one slot less
there, and each ``_RAISE`` generations without one for one more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import IncompatibleModel, InvalidRequest
from .prefix_cache import BLOCK
from .served_model import ServedModel

_DOWN = 2.0  # seconds that nothing is opened on a server that failed; then twice that
_LONGEST_DOWN = 60.0
_RAISE = 16
_APART = 1.0  # seconds in which losses count as one: a server that restarts loses all
_REST = 1.0  # seconds that a slot which nobody may use is counted among ours


@dataclass(eq=False)
class Slot:
    """A slot of one server; leased to one sequence, or free.

    ``number`` and ``ticket`` are the server's. ``tokens`` are those whose rows a free
    one holds. ``busy`` says that a call on it is under way, or that nobody knows how it
    ended; ``doubtful`` that an earlier attempt may still run. Both are never given to
    another sequence, whose rows such a call could overwrite.
    """

    target: str
    version: int = 0
    model_id: str = ""
    number: int = -1
    ticket: int = 0
    tokens: Sequence[int] = ()
    busy: bool = True
    doubtful: bool = False
    revoked: bool = False
    idle_since: float = 0.0

    def common(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens it holds the rows of."""
        for i, (own, other) in enumerate(zip(self.tokens, tokens, strict=False)):
            if own != other:
                return i
        return min(len(self.tokens), len(tokens))

    def is_beside(self, other: Slot) -> bool:
        """Whether both are in one process of one server, as far as is known."""
        own = (self.target, self.version, self.model_id)
        return own == (other.target, other.version, other.model_id)

    def is_worth(self, tokens: Sequence[int]) -> bool:
        """Whether its rows help here enough not to be left to those who come later."""
        common = self.common(tokens)
        return common >= BLOCK or 0 < common == len(self.tokens)


@dataclass(eq=False)
class _Waiting:
    tokens: Sequence[int]
    model: ServedModel
    future: Future[Slot] = field(default_factory=Future)


Sessions = bool | Literal["auto"]
"""Whether a client uses the sessions of an export."""


def open_pool(sessions: Sessions, targets: Sequence[str]) -> SessionPool | None:
    """A client's pool; None without sessions.

    Raises:
        InvalidRequest: neither True, False nor "auto".
    """
    if sessions not in (True, False, "auto"):
        raise InvalidRequest(
            f"sessions must be True, False or 'auto', got {sessions!r}"
        )
    return SessionPool(targets) if sessions else None


def check_sessions(sessions: Sessions, model: ServedModel) -> None:
    """Raise ``IncompatibleModel`` where sessions were asked for and there are none."""
    if sessions is True and not model.manifest.sessions:
        raise IncompatibleModel(
            "sessions=True, and this export has none: export it with --sessions, or "
            "use sessions='auto', which falls back to explicit caches"
        )


class SessionPool:
    """The slots of one client. Safe to use from several threads.

    Args:
        targets: the servers' addresses; none stands for the only one.
        clock: seconds.
    """

    def __init__(
        self, targets: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._targets = tuple(targets) or ("",)
        self._clock = clock
        self._leased: set[Slot] = set()
        self._free: list[Slot] = []  # the one used longest ago first
        self._resting: list[tuple[str, float]] = []
        self._queue: deque[_Waiting] = deque()
        self._fewer: Counter[str] = Counter()  # slots that are not asked for
        self._quiet: Counter[str] = Counter()  # generations since one was lost
        self._shrunk_at: dict[str, float] = {}
        self._down_until: dict[str, float] = {}
        self._failures: Counter[str] = Counter()  # of each server, in a row
        self._asked = clock()
        self._lock = threading.Lock()

    @property
    def servers(self) -> int:
        """How many addresses there are."""
        return len(self._targets)

    @property
    def leased(self) -> int:
        """How many slots sequences have."""
        return len(self._leased)

    def take(
        self, tokens: Sequence[int], model: ServedModel, *, target: str | None = None
    ) -> Slot | None:
        """A slot at once, at the target if one is named; None if it is others' turn.

        One without a ticket is to be opened: at its target, or anywhere without one.
        """
        with self._lock:
            return None if self._queue else self._take(tokens, model, target)

    def wait(self, tokens: Sequence[int], model: ServedModel) -> Future[Slot]:
        """A slot when it is this caller's turn; cancel the future to leave the line."""
        waiting = _Waiting(tokens, model)
        with self._lock:
            self._queue.append(waiting)
            self._serve()
        return waiting.future

    def serve(self, *, idle: float) -> None:
        """Give slots to those in line whose turn has come.

        If the line still waits, the sequence that has not used its slot for longest,
        for ``idle`` seconds at least, loses it: its caller takes no chunks.
        """
        with self._lock:
            self._serve()
            oldest = min(
                (slot for slot in self._leased if not slot.busy),
                key=lambda slot: slot.idle_since,
                default=None,
            )
            if not self._queue or oldest is None:
                return
            if oldest.idle_since <= self._clock() - idle:
                self._leased.discard(oldest)
                oldest.revoked = True
                if not oldest.doubtful:
                    self._free.append(replace(oldest, revoked=False, tokens=()))
                self._serve()

    def opened(self, slot: Slot, opened: Slot) -> None:
        """The server has given a slot: the lease gets its facts."""
        with self._lock:
            if opened.target in self._targets:
                slot.target = opened.target
            slot.version, slot.model_id = opened.version, opened.model_id
            slot.number, slot.ticket = opened.number, opened.ticket
            slot.busy, slot.idle_since = False, self._clock()
            self._failures[slot.target] = 0

    def begin(self, slot: Slot) -> bool:
        """A call on the slot begins, unless it has been taken away."""
        with self._lock:
            slot.busy = not slot.revoked
            return slot.busy

    def end(self, slot: Slot, *, doubtful: bool) -> None:
        """The call's reply has come; an attempt that failed before it may still run."""
        with self._lock:
            slot.busy, slot.idle_since = False, self._clock()
            slot.doubtful = slot.doubtful or doubtful

    def release(self, slot: Slot, tokens: Sequence[int]) -> None:
        """A sequence has ended; ``tokens`` are those whose rows the slot holds."""
        with self._lock:
            if slot not in self._leased:
                return
            self._leased.discard(slot)
            if slot.busy or slot.doubtful:
                self._resting.append((slot.target, self._clock() + _REST))
            else:
                self._free.append(replace(slot, tokens=list(tokens)))
            self._quiet[slot.target] += 1
            if self._quiet[slot.target] % _RAISE == 0:
                self._fewer[slot.target] = max(self._fewer[slot.target] - 1, 0)
            self._serve()

    def drop(self, slot: Slot, *, evicted: bool = False) -> None:
        """Forget a slot: another client has it, or nobody knows what is in it."""
        with self._lock:
            shrunk = self._shrunk_at.get(slot.target, -_APART)
            if evicted and slot in self._leased and self._clock() - shrunk >= _APART:
                self._shrunk_at[slot.target] = self._clock()
                self._fewer[slot.target] += 1
                self._quiet[slot.target] = 0
            self._leased.discard(slot)
            self._serve()

    def failed(self, target: str) -> None:
        """A server could not be reached: another process may answer there next."""
        with self._lock:
            seconds = min(_DOWN * 2 ** min(self._failures[target], 9), _LONGEST_DOWN)
            self._failures[target] += 1
            self._down_until[target] = self._clock() + seconds
            self._free = [slot for slot in self._free if slot.target != target]
            self._serve()

    def held(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens some free slot holds the rows of."""
        with self._lock:
            return max((slot.common(tokens) for slot in self._free), default=0)

    def ask_again(self, seconds: float) -> bool:
        """Whether so much time has passed since this was last true."""
        with self._lock:
            due = self._clock() >= self._asked + seconds
            self._asked = self._clock() if due else self._asked
            return due

    def _serve(self) -> None:
        while self._queue:
            waiting = self._queue[0]
            if not waiting.future.done():
                slot = self._take(waiting.tokens, waiting.model, None)
                if slot is None:
                    return
                if waiting.future.set_running_or_notify_cancel():
                    waiting.future.set_result(slot)
                else:
                    self._return(slot)
            self._queue.popleft()

    def _return(self, slot: Slot) -> None:
        """Undo a lease that nobody took."""
        self._leased.discard(slot)
        if slot.ticket:
            self._free.append(slot)

    def _take(
        self, tokens: Sequence[int], model: ServedModel, target: str | None
    ) -> Slot | None:
        self._free = [slot for slot in self._free if _is_of(slot, model)]
        free = [slot for slot in self._free if target in (None, slot.target)]
        best = max(free, key=lambda slot: slot.common(tokens), default=None)
        if best is None or not best.is_worth(tokens):
            room = self._roomy(model, target)
            if room is not None:
                best = Slot(room)
            elif free:
                best = free[0]
        if best is None:
            return None
        if best in self._free:
            self._free.remove(best)
        best.idle_since = self._clock()
        self._leased.add(best)
        return best

    def _roomy(self, model: ServedModel, target: str | None) -> str | None:
        """The server with the fewest slots of ours, if it has more; "" for any.

        Where none can be reached, the call that opens a slot finds out who returns.
        """
        now = self._clock()
        up = [t for t in self._targets if self._down_until.get(t, 0.0) <= now]
        self._resting = [pair for pair in self._resting if pair[1] > now]
        ours = [slot.target for slot in (*self._leased, *self._free)]
        ours += [target for target, _ in self._resting]
        if not up and target is None:
            return None if "" in ours else ""
        counts = {t: ours.count(t) for t in up}
        named = [t for t in up if target in (None, t)]
        emptiest = min(named, key=lambda t: counts[t], default=None)
        if emptiest is None:
            return None
        most = max(model.manifest.sessions["slots"] - self._fewer[emptiest], 1)
        return emptiest if counts[emptiest] < most else None


def _is_of(slot: Slot, model: ServedModel) -> bool:
    return slot.version == model.version and slot.model_id in ("", model.model_id)
