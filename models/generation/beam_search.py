"""Beam search: its scores and end conditions, as Hugging Face has them, and the search
itself over the arrays of any framework.

The client, whose rows come and go, runs its own loop over the same rules
(``runtime/decoding/beam_search.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .arrays import Array, Arrays, log_softmax
from .plan import Numbers, Plan
from .search import (
    Fed,
    Found,
    Model,
    Prompt,
    ended,
    keep_states,
    process,
    room_for_states,
)

EarlyStopping = bool | Literal["never"]
"""True: a row ends at ``width`` finished sequences. False: when the best running beam
can't win at its present length. "never": when it can't win at any length."""


def candidate_count(width: int, stop_ids: int) -> int:
    """How many continuations hold ``width`` that don't end, with that many ids that
    end one."""
    return max(2, 1 + stop_ids) * width


def best_candidates(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest ``scores`` [n], best first, the lowest among
    equals."""
    count = min(count, scores.size)
    best = np.argpartition(-scores, count - 1)[:count]
    return best[np.lexsort((best, -scores[best]))]


def sequence_score(total: Any, new_tokens: Any, length_penalty: float) -> Any:
    """A sequence's summed log-probability over (new tokens) ** ``length_penalty``."""
    return total / new_tokens**length_penalty


def compared_length(
    new_tokens: Any,
    max_new_tokens: Any,
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> Any:
    """The length at which the best running beam is compared with finished ones."""
    if early_stopping == "never" and length_penalty > 0:
        return max_new_tokens
    return new_tokens


@dataclass(frozen=True)
class BeamStyle:
    """Where Transformers' own TensorFlow and Flax classes differ."""

    never: float  # the score of what should not be chosen
    best_end: bool  # only a candidate among the best ``width`` can end
    scored_running: bool  # beams that never ended get their length penalty too


class _Beams(NamedTuple):
    step: Any
    running: Array  # [B,K,N] tokens
    totals: Array  # [B,K] sums of log-probabilities
    finished: Array  # [B,K,N]
    finished_scores: Array  # [B,K]
    is_finished: Array  # [B,K]
    running_indices: Array  # [B,K,N]: row of which each token came
    finished_indices: Array  # [B,K,N]
    scores: Array  # [N,B·K,V], or [0,B·K,V]
    cache: Any  # rows [B·K]
    states: Any  # of the running beams


def beam_search(
    xp: Arrays,
    model: Model,
    plan: Plan,
    numbers: Numbers,
    prompt: Prompt,
    style: BeamStyle,
) -> Found:
    """Follow K beams of each prompt, in the order and with the end of Transformers'
    TensorFlow and Flax classes; in the mode beam_sample candidates are drawn.

    Continuations compete over all beams of a prompt; the best 2K hold K that go on.
    """
    K, N = plan.beams, plan.slots
    prompt_fed = model.prefill(K)
    R, V = xp.shape(prompt_fed.logits)
    B, S = xp.shape(prompt.ids)
    slot, rank = xp.arange(N)[None, None], xp.arange(2 * K)[None]
    early = plan.early_stopping is True

    def advance(state: _Beams, fed: Fed) -> _Beams:
        tokens = xp.reshape(state.running, [R, N])
        own = log_softmax(xp, fed.logits)
        own = process(xp, plan, numbers, prompt, tokens, state.step, own)
        if plan.mode == "beam_sample":
            own = model.warp(own, numbers)
        scores = state.scores
        if plan.with_scores:
            scores = xp.write(scores, state.step, own)
        flat = xp.reshape(own + xp.reshape(state.totals, [R])[:, None], [B, K * V])
        if plan.mode == "beam_sample":
            noise = model.noise(numbers, state.step, V)
            _, index = xp.top_k(flat + xp.reshape(noise, [B, K * V]), 2 * K)
            top = xp.take_along(flat, index)
        else:
            top, index = xp.top_k(flat, 2 * K)
        parent, token = index // V, index % V  # [B,2K]
        now = slot == state.step
        grown = xp.take_along(state.running, parent)
        grown = xp.where(now, token[:, :, None], grown)
        row = parent + xp.arange(B)[:, None] * K
        came = xp.take_along(state.running_indices, parent)
        came = xp.where(now, row[:, :, None], came)

        ends = ended(xp, plan, token)
        unlikely = xp.array(style.never, "float32")
        zero = xp.array(0.0, "float32")
        going = top + xp.where(ends, unlikely, zero)
        _, best = xp.top_k(going, K)

        if style.best_end:
            ends &= rank < K
        length = xp.cast(state.step + 1, "float32")
        score = sequence_score(top, length, plan.length_penalty)
        counts = ends
        if early:
            counts &= ~xp.all(state.is_finished, 1)[:, None]
        score += xp.where(counts, zero, unlikely)
        all_scores = xp.concat([state.finished_scores, score], 1)
        _, kept = xp.top_k(all_scores, K)

        def keep(old: Array, new: Array) -> Array:
            return xp.take_along(xp.concat([old, new], 1), kept)

        rows = xp.reshape(xp.take_along(row, best), [R])
        return _Beams(
            step=state.step + 1,
            running=xp.take_along(grown, best),
            totals=xp.take_along(going, best),
            finished=keep(state.finished, grown),
            finished_scores=xp.take_along(all_scores, kept),
            is_finished=keep(state.is_finished, ends),
            running_indices=xp.take_along(came, best),
            finished_indices=keep(state.finished_indices, came),
            scores=scores,
            cache=xp.map(lambda x: xp.take(x, rows), fed.cache),
            states=state.states,
        )

    def goes_on(state: _Beams) -> Any:
        length = compared_length(
            state.step, numbers.limit, plan.length_penalty, plan.early_stopping
        )
        best = sequence_score(
            state.totals[:, :1], xp.cast(length, "float32"), plan.length_penalty
        )
        worst = xp.where(
            state.is_finished,
            xp.min(state.finished_scores, 1)[:, None],
            xp.array(style.never, "float32"),
        )
        going = (state.step < numbers.limit) & xp.any(best > worst)
        return going & ~xp.all(state.is_finished) if early else going

    def body(state: _Beams) -> _Beams:
        last = state.step - 1
        token = xp.max(xp.where(slot == last, state.running, xp.array(-1)), 2)
        fed = model.step(xp.reshape(token, [R]), last, state.cache)
        states = keep_states(xp, state.states, last, fed.states)
        return advance(state._replace(states=states), fed)

    no_tokens = xp.full([B, K, N], plan.pad, "int32")
    first = (xp.arange(K) == 0)[None] & xp.full([B, K], True, "bool")
    start = _Beams(
        step=xp.array(0),
        running=no_tokens,
        totals=xp.where(
            first, xp.array(0.0, "float32"), xp.array(style.never, "float32")
        ),
        finished=no_tokens,
        finished_scores=xp.full([B, K], style.never, "float32"),
        is_finished=xp.full([B, K], False, "bool"),
        running_indices=xp.full([B, K, N], -1, "int32"),
        finished_indices=xp.full([B, K, N], -1, "int32"),
        scores=xp.full([N if plan.with_scores else 0, R, V], 0.0, "float32"),
        cache=None,
        states=room_for_states(xp, plan, prompt_fed.states, S),
    )
    end = xp.while_loop(goes_on, body, advance(start, prompt_fed))
    done = xp.any(end.is_finished, 1)
    totals = end.totals
    if style.scored_running:
        totals = sequence_score(
            totals, xp.cast(end.step, "float32"), plan.length_penalty
        )

    def best(finished: Array, running: Array, size: list[int]) -> Array:
        there = xp.reshape(done, [B, 1, 1][: len(size) + 1])
        rows = xp.where(there, finished, running)[:, : plan.returned]
        return xp.reshape(rows, [B * plan.returned, *size[1:]])

    return Found(
        tokens=best(end.finished, end.running, [K, N]),
        steps=end.step,
        scores=end.scores if plan.with_scores else None,
        sequence_scores=best(end.finished_scores, totals, [K]),
        beam_indices=best(end.finished_indices, end.running_indices, [K, N]),
        prompt_states=prompt_fed.states,
        states=end.states,
    )
