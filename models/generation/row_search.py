"""Greedy decoding and sampling, once for all frameworks: each row goes its own way."""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Array
from .search import Search, SearchResult, StepOutput


class _Rows(NamedTuple):
    step: Any  # new tokens so far
    token: Array  # [R], fed next
    alive: Array  # [R]
    tokens: Array  # [R,N]
    scores: Array  # [N,R,V], or [0,R,V]
    cache: Any
    states: Any


class RowSearch(Search):
    """Greedy decoding; in the mode sample tokens are drawn."""

    def run(self) -> SearchResult:
        """Continue each prompt as often as the plan's copies."""
        prompt_output = self.model.prefill(self.plan.copies)
        start = self._choose(self._start(prompt_output), prompt_output)
        end = self.xp.while_loop(self.unfinished, self._advance, start)
        return self.result(end, prompt_output, tokens=end.tokens)

    def _start(self, prompt_output: StepOutput) -> _Rows:
        xp, plan = self.xp, self.plan
        R, V = xp.shape(prompt_output.logits)
        return _Rows(
            step=xp.array(0),
            token=xp.full([R], plan.pad, "int32"),
            alive=xp.full([R], True, "bool"),
            tokens=xp.full([R, plan.slots], plan.pad, "int32"),
            scores=self.room_for_scores(R, V),
            cache=None,
            states=self.room_for_states(prompt_output.states),
        )

    def _advance(self, state: _Rows) -> _Rows:
        last = state.step - 1
        output = self.model.step(state.token, last, state.cache)
        states = self.keep_states(state.states, last, output.states)
        return self._choose(state._replace(states=states), output)

    def _choose(self, state: _Rows, output: StepOutput) -> _Rows:
        """The next token of each row; pad after its end."""
        xp = self.xp
        logits = self.process(state.tokens, state.step, output.logits)
        if self.plan.mode == "sample":
            token = self.model.draw(logits, self.numbers, state.step)
            if self.plan.with_scores:
                logits = self.model.warp(logits, self.numbers)
        else:
            token = xp.argmax(logits)
        token = xp.where(state.alive, token, xp.array(self.plan.pad))
        return _Rows(
            step=state.step + 1,
            token=token,
            alive=state.alive & ~self.ended(token),
            tokens=self.put(state.tokens, state.step, token),
            scores=self.keep_scores(state.scores, state.step, logits),
            cache=output.cache,
            states=state.states,
        )
