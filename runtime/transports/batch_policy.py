"""Which waiting calls go next, together, and for how many new tokens. No I/O.

Prompts go before decode steps, for somebody waits for a first token; but rows that have
tokens already don't wait for others' prompts for longer than ``_PATIENCE``, or than a
few calls of their own take. While prompts wait, a decode call makes few tokens;
otherwise as many as give the most tokens per second, for four seconds or so, so that
all streams flow. A prompt's own call makes one token, and its row goes on with all
others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .base import Call
from .joining import most_new_tokens

_PATIENCE = 3.0  # seconds that rows with tokens wait for others' prompts
_SHARE = 4  # times as long as their own call takes, if that is longer
_LONGEST = 4.0  # seconds of a decode call that several callers share
_FEW = 8  # new tokens of a decode call while prompts wait
_CALL_COST = 2  # tokens that could be made in the time that a call takes besides
_CALL_COST_WITH_CACHES = 8
_PROMPT_TOKENS = 1024  # of one call of prompts: more at once gain nothing
_PADDING = 0.125  # of such a call that may be padding

Kind = Literal["prompt", "decode"]


@dataclass(eq=False)
class Waiting:
    """A call that waits for its turn, or for its reply.

    ``arrival`` counts the calls; ``since`` is when it came.
    """

    call: Call
    deadline: float | None
    answer: asyncio.Future
    arrival: int
    since: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """S, the tokens that it feeds to a row."""
        return self.call.inputs["input_ids"].shape[1]

    @property
    def kind(self) -> Kind:
        """Texts to score or to embed are prompts as well."""
        whole = self.call.signature in ("score", "embed")
        return "prompt" if whole or self.size > 1 else "decode"

    @property
    def steps(self) -> int:
        """Most new tokens that one of its rows asks for; 0 if it makes none."""
        asked = self.call.inputs.get("max_new_tokens")
        return 0 if asked is None else int(np.max(np.asarray(asked)))

    @property
    def carries_caches(self) -> bool:
        """Whether the rows' caches travel with it, rather than stay in sessions."""
        return "cache" in self.call.inputs

    @property
    def cost(self) -> int:
        """Tokens that could be made in the time that the call takes besides."""
        return _CALL_COST_WITH_CACHES if self.carries_caches else _CALL_COST

    @property
    def cached(self) -> int:
        """C, the tokens that its rows have behind them."""
        lengths = self.call.inputs.get("cache_length")
        return 0 if lengths is None else int(np.max(np.asarray(lengths)))

    @property
    def key(self) -> Hashable:
        """Calls with equal ones can be joined."""
        call = self.call
        name = call.signature
        if most_new_tokens(call):
            name = name.rpartition("_")[0]
        origin = (call.version, call.model_id, call.replicas)
        return (self.kind, name, call.outputs, *origin)


@dataclass(frozen=True)
class Batch:
    """Calls that go together.

    ``steps`` bounds the new tokens of each row; ``short`` says that it is a decode call
    of few steps, since somebody waits for a first token.
    """

    members: tuple[Waiting, ...]
    kind: Kind
    steps: int | None = None
    short: bool = False


@dataclass(frozen=True)
class Limits:
    """What a server and its export allow.

    Attributes:
        rows: most rows of a joined call, given one of its calls.
        padded: B of a joined call, given one of its calls and the rows of all.
        in_flight: calls under way at a time, at all addresses.
        addresses: how many servers there are.
    """

    rows: Callable[[Call], int]
    padded: Callable[[Call, int], int]
    in_flight: int
    addresses: int = 1

    def allow(self, lead: Waiting, running: Sequence[Batch]) -> bool:
        """Whether one more call of this kind may be under way.

        A server's processors are busy with one call, and two at a time take longer
        than one after the other. So decode steps wait for prompts, and prompts for
        decode calls of few steps; but a new caller's prompt goes beside a long one.
        """
        if len(running) >= self.in_flight:
            return False
        share = max(1, self.in_flight // 2)
        if replicas := lead.call.replicas:
            running = [b for b in running if b.members[0].call.replicas == replicas]
            share = max(1, share // self.addresses)
        prompts = sum(batch.kind == "prompt" for batch in running)
        decodes = len(running) - prompts
        if lead.kind == "prompt":
            short = any(batch.short for batch in running)
            return prompts < share and (decodes < share or not short)
        return len(running) < share


@dataclass
class Pace:
    """How long calls take here, from those that have ended.

    Attributes:
        step: seconds that one more new token takes, of the last decode call.
        short: seconds of the last decode call between prompts.
    """

    step: float = 0.0
    short: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds that rows with tokens wait for others' prompts."""
        return max(_PATIENCE, _SHARE * self.short)

    @property
    def most_steps(self) -> int:
        """New tokens of a call that several callers share, for some seconds at most."""
        return max(_FEW, int(_LONGEST / self.step)) if self.step else _FEW

    def ended(self, batch: Batch, seconds: float, made: int) -> None:
        """A decode call has given each row up to ``made`` tokens."""
        self.step = seconds / (made + batch.members[0].cost)
        if batch.short:
            self.short = seconds


def next_batch(
    waiting: Sequence[Waiting],
    running: Sequence[Batch],
    limits: Limits,
    pace: Pace,
) -> Batch | None:
    """The calls that should leave now, if any.

    Args:
        waiting: by their arrival.
        running: what is under way.
        limits: what there is room for.
        pace: how long calls take.
    """

    def impatient(lead: Waiting) -> bool:
        return time.monotonic() - lead.since > pace.patience

    def rank(group: Sequence[Waiting]) -> tuple[int, int]:
        """Impatient rows, then prompts, then other rows; among equals the oldest."""
        lead = group[0]
        if lead.kind == "prompt":
            return 1, lead.arrival
        return 0 if impatient(lead) else 2, lead.arrival

    groups: dict[Hashable, list[Waiting]] = {}
    for one in waiting:
        groups.setdefault(one.key, []).append(one)
    ranked = sorted(groups.values(), key=rank)
    asked = {group[0].call.replicas for group in ranked if group[0].kind == "prompt"}
    for group in ranked:
        lead = group[0]
        prompts_wait = lead.call.replicas in asked  # of the same servers
        if not limits.allow(lead, running):
            continue
        if lead.kind == "prompt":
            members = _prompts(group, limits)
            alone = not running and len(members) == len(waiting)
            return Batch(members, "prompt", None if alone else 1)
        if prompts_wait and not impatient(lead):
            continue
        members = _alike(group, limits)
        most = _FEW if prompts_wait else pace.most_steps
        steps = _steps(members, most if prompts_wait or len(members) > 1 else None)
        return Batch(members, "decode", steps, short=prompts_wait)
    return None


def _alike(group: Sequence[Waiting], limits: Limits) -> tuple[Waiting, ...]:
    """As many as one call takes: the oldest, and others with caches of like length.

    All rows of a call cost as much as its longest. So of more rows than fit, ordered by
    length, the part goes that the oldest is in.
    """
    lead = group[0]
    most = min(limits.rows(one.call) for one in group)
    ranked = sorted(group, key=lambda w: (w.cached, w.arrival))
    parts = -(-sum(one.call.rows for one in group) // max(most, 1))
    size = -(-len(ranked) // parts)
    begin = ranked.index(lead) // size * size
    members, rows = [lead], lead.call.rows
    for one in ranked[begin : begin + size]:
        if one is not lead and rows + one.call.rows <= most:
            members.append(one)
            rows += one.call.rows
    return tuple(sorted(members, key=lambda w: w.arrival))


def _prompts(group: Sequence[Waiting], limits: Limits) -> tuple[Waiting, ...]:
    """The oldest, and those most like it in length, so that little is padding."""
    lead = group[0]
    ranked = sorted(group, key=lambda w: (abs(w.size - lead.size), w.arrival))
    rows = real = longest = 0
    most, fitting = limits.rows(lead.call), 1
    for count, one in enumerate(ranked, start=1):
        rows, longest = rows + one.call.rows, max(longest, one.size)
        real += one.size * one.call.rows
        most = min(most, limits.rows(one.call))
        if count > 1 and (rows > most or rows * longest > _PROMPT_TOKENS):
            break
        tokens = longest * limits.padded(one.call, rows)
        if tokens - real <= _PADDING * tokens:
            fitting = count  # fewer rows may be padded to as many
    return tuple(sorted(ranked[:fitting], key=lambda w: w.arrival))


def _steps(members: Sequence[Waiting], most: int | None) -> int | None:
    """How many tokens the rows should make, given what each asks for.

    A row that asks for fewer is carried along, and rows that ask for more call again,
    at the cost of a call. So the number, up to ``most``, is that which makes the most
    tokens in the time. None where the calls make none.
    """
    asked = [(min(one.steps, most or one.steps), one.call.rows) for one in members]

    def tokens_per_second(k: int) -> float:
        made = sum(min(steps, k) * rows for steps, rows in asked)
        return made / (k + members[0].cost)

    return max({steps for steps, _ in asked}, key=tokens_per_second) or None
