"""Beam search: its scores and end conditions, as Hugging Face has them, and the search
itself over the arrays of any framework.

The client, whose rows come and go, runs its own loop over the same rules
(``runtime/decoding/beam_search.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .arrays import Array, log_softmax
from .search import Search, SearchResult, StepOutput

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
    step: Any  # new tokens so far
    running: Array  # [B,K,N] tokens
    totals: Array  # [B,K] sums of log-probabilities
    finished: Array  # [B,K,N]
    finished_scores: Array  # [B,K]
    is_finished: Array  # [B,K]
    running_indices: Array  # [B,K,N]: the row that each token came from
    finished_indices: Array  # [B,K,N]
    scores: Array  # [N,B·K,V], or [0,B·K,V]
    cache: Any  # rows [B·K]
    states: Any  # of the running beams


class _Candidates(NamedTuple):
    """The best 2K continuations of each prompt by one token, best first."""

    tokens: Array  # [B,2K,N]
    indices: Array  # [B,2K,N]: the row that each token came from
    totals: Array  # [B,2K] sums of log-probabilities
    rows: Array  # [B,2K]: the row of [B·K] that each continues
    ends: Array  # [B,2K]: whether the token ends it


@dataclass(frozen=True, eq=False)
class BeamSearch(Search):
    """K beams of each prompt, in the order and with the end of Transformers'
    TensorFlow and Flax classes; in the mode beam_sample candidates are drawn.

    Continuations compete over all beams of a prompt; the best 2K hold K that go on.
    """

    style: BeamStyle

    def run(self) -> SearchResult:
        """Continue each prompt by its beams; the plan says how many are returned."""
        prompt_output = self.model.prefill(self.plan.beams)
        start = self._choose(self._start(prompt_output), prompt_output)
        end = self.xp.while_loop(self._goes_on, self._advance, start)
        return self.result(end, prompt_output, **self._returned(end))

    def _start(self, prompt_output: StepOutput) -> _Beams:
        """One running beam, K − 1 that nothing would choose, and none finished."""
        xp, K, N, never = self.xp, self.plan.beams, self.plan.slots, self._never()
        R, V = xp.shape(prompt_output.logits)
        B = xp.shape(self.prompt.ids)[0]
        no_tokens = xp.full([B, K, N], self.plan.pad, "int32")
        no_indices = xp.full([B, K, N], -1, "int32")
        first = (xp.arange(K) == 0)[None] & xp.full([B, K], True, "bool")
        return _Beams(
            step=xp.array(0),
            running=no_tokens,
            totals=xp.where(first, xp.array(0.0, "float32"), never),
            finished=no_tokens,
            finished_scores=xp.full([B, K], self.style.never, "float32"),
            is_finished=xp.full([B, K], False, "bool"),
            running_indices=no_indices,
            finished_indices=no_indices,
            scores=self.room_for_scores(R, V),
            cache=None,
            states=self.room_for_states(prompt_output.states),
        )

    def _never(self) -> Array:
        return self.xp.array(self.style.never, "float32")

    def _goes_on(self, state: _Beams) -> Any:
        """Whether a running beam can still win over the finished ones."""
        xp, plan, limit = self.xp, self.plan, self.numbers.limit
        length = compared_length(
            state.step, limit, plan.length_penalty, plan.early_stopping
        )
        length = xp.cast(length, "float32")
        best = sequence_score(state.totals[:, :1], length, plan.length_penalty)
        worst = xp.min(state.finished_scores, 1)[:, None]
        worst = xp.where(state.is_finished, worst, self._never())
        going = (state.step < limit) & xp.any(best > worst)
        if plan.early_stopping is True:
            going &= ~xp.all(state.is_finished)
        return going

    def _advance(self, state: _Beams) -> _Beams:
        """Feed the running beams' last tokens and choose the next."""
        xp, last = self.xp, state.step - 1
        now = xp.arange(self.plan.slots)[None, None] == last
        token = xp.max(xp.where(now, state.running, xp.array(-1)), 2)
        output = self.model.step(xp.reshape(token, [-1]), last, state.cache)
        states = self.keep_states(state.states, last, output.states)
        return self._choose(state._replace(states=states), output)

    def _choose(self, state: _Beams, output: StepOutput) -> _Beams:
        log_probs = self._log_probabilities(state, output.logits)
        candidates = self._candidates(state, log_probs)
        scores = self.keep_scores(state.scores, state.step, log_probs)
        state = self._finish(state._replace(scores=scores), candidates)
        return self._go_on(state, candidates, output.cache)

    def _log_probabilities(self, state: _Beams, logits: Array) -> Array:
        """What each beam's next token would add to its total, [B·K,V]."""
        xp = self.xp
        tokens = xp.reshape(state.running, [-1, self.plan.slots])
        log_probs = self.process(tokens, state.step, log_softmax(xp, logits))
        if self.plan.mode == "beam_sample":
            log_probs = self.model.warp(log_probs, self.numbers)
        return log_probs

    def _candidates(self, state: _Beams, log_probs: Array) -> _Candidates:
        xp, K = self.xp, self.plan.beams
        B, V = xp.shape(state.totals)[0], xp.shape(log_probs)[1]
        totals = log_probs + xp.reshape(state.totals, [-1])[:, None]
        totals, index = self._best(state, xp.reshape(totals, [B, K * V]))
        parent, token = index // V, index % V  # [B,2K]
        rows = parent + xp.arange(B)[:, None] * K
        now = xp.arange(self.plan.slots)[None, None] == state.step

        def grown(past: Array, new: Array) -> Array:
            return xp.where(now, new[:, :, None], xp.take_along(past, parent))

        return _Candidates(
            tokens=grown(state.running, token),
            indices=grown(state.running_indices, rows),
            totals=totals,
            rows=rows,
            ends=self.ended(token),
        )

    def _best(self, state: _Beams, totals: Array) -> tuple[Array, Array]:
        """2K of ``totals`` [B,K·V] and their indices; in beam_sample drawn ones."""
        xp, K = self.xp, self.plan.beams
        if self.plan.mode != "beam_sample":
            return xp.top_k(totals, 2 * K)
        B, size = xp.shape(totals)
        noise = self.model.noise(self.numbers, state.step, size // K)
        _, index = xp.top_k(totals + xp.reshape(noise, [B, size]), 2 * K)
        return xp.take_along(totals, index), index

    def _finish(self, state: _Beams, candidates: _Candidates) -> _Beams:
        """The best K of the sequences that had ended and those that end now."""
        xp, K = self.xp, self.plan.beams
        ends, zero = candidates.ends, xp.array(0.0, "float32")
        if self.style.best_end:
            ends &= xp.arange(2 * K)[None] < K
        length = xp.cast(state.step + 1, "float32")
        score = sequence_score(candidates.totals, length, self.plan.length_penalty)
        counts = ends
        if self.plan.early_stopping is True:
            counts &= ~xp.all(state.is_finished, 1)[:, None]
        score += xp.where(counts, zero, self._never())
        scores = xp.concat([state.finished_scores, score], 1)
        _, kept = xp.top_k(scores, K)

        def keep(old: Array, new: Array) -> Array:
            return xp.take_along(xp.concat([old, new], 1), kept)

        return state._replace(
            finished=keep(state.finished, candidates.tokens),
            finished_scores=xp.take_along(scores, kept),
            is_finished=keep(state.is_finished, ends),
            finished_indices=keep(state.finished_indices, candidates.indices),
        )

    def _go_on(self, state: _Beams, candidates: _Candidates, cache: Any) -> _Beams:
        """The best K continuations that don't end, with their rows of the cache."""
        xp, zero = self.xp, self.xp.array(0.0, "float32")
        going = candidates.totals + xp.where(candidates.ends, self._never(), zero)
        _, best = xp.top_k(going, self.plan.beams)
        rows = xp.reshape(xp.take_along(candidates.rows, best), [-1])
        return state._replace(
            step=state.step + 1,
            running=xp.take_along(candidates.tokens, best),
            totals=xp.take_along(going, best),
            running_indices=xp.take_along(candidates.indices, best),
            cache=xp.map(lambda x: xp.take(x, rows), cache),
        )

    def _returned(self, end: _Beams) -> dict[str, Array]:
        """The fields of the result that are beams': a prompt's finished sequences, or
        its running beams where none has finished."""
        xp, plan = self.xp, self.plan
        B = xp.shape(end.totals)[0]
        done = xp.any(end.is_finished, 1)
        totals = end.totals
        if self.style.scored_running:
            length = xp.cast(end.step, "float32")
            totals = sequence_score(totals, length, plan.length_penalty)

        def best(finished: Array, running: Array, *rest: int) -> Array:
            there = xp.reshape(done, [B, 1, *(1 for _ in rest)])
            rows = xp.where(there, finished, running)[:, : plan.returned]
            return xp.reshape(rows, [B * plan.returned, *rest])

        return {
            "tokens": best(end.finished, end.running, plan.slots),
            "sequence_scores": best(end.finished_scores, totals),
            "beam_indices": best(end.finished_indices, end.running_indices, plan.slots),
        }
