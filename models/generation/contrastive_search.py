"""Contrastive search, once for all frameworks."""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Array, Arrays, log_softmax
from .search import Search, SearchResult, StepOutput


class _Contrast(NamedTuple):
    step: Any  # new tokens so far
    alive: Array  # [B]
    tokens: Array  # [B,N]
    scores: Array  # [N,B,V], or [0,B,V]
    logits: Array  # [B,V], to choose from next
    hidden: Array  # [B,T,W], of all tokens so far
    cache: Any
    states: Any


class ContrastiveSearch(Search):
    """The likely token that is least like what is there already.

    Of the k likeliest tokens the one with the largest (1 − α) · probability − α · (the
    largest cosine between its hidden state and those before it), by Su et al. 2022,
    "A Contrastive Framework for Neural Text Generation".
    """

    def run(self) -> SearchResult:
        """Continue each prompt once."""
        prompt_output = self.model.prefill(1)
        start = self._start(prompt_output)
        end = self.xp.while_loop(self.unfinished, self._advance, start)
        return self.result(end, prompt_output, tokens=end.tokens)

    def _start(self, prompt_output: StepOutput) -> _Contrast:
        xp, plan = self.xp, self.plan
        B, V = xp.shape(prompt_output.logits)
        hidden = xp.cast(prompt_output.hidden, "float32")
        room = xp.full([B, plan.slots, hidden.shape[-1]], 0.0, "float32")
        return _Contrast(
            step=xp.array(0),
            alive=xp.full([B], True, "bool"),
            tokens=xp.full([B, plan.slots], plan.pad, "int32"),
            scores=self.room_for_scores(B, V),
            logits=prompt_output.logits,
            hidden=xp.concat([hidden, room], 1),
            cache=prompt_output.cache,
            states=self.room_for_states(prompt_output.states),
        )

    def _advance(self, state: _Contrast) -> _Contrast:
        """Feed the k likeliest tokens of each row and keep one of them."""
        xp, k, step = self.xp, self.plan.top_k, state.step
        logits = self.process(state.tokens, step, state.logits)
        likely, ids = xp.top_k(xp.exp(log_softmax(xp, logits)), k)  # [B,k]
        cache = xp.map(lambda x: xp.repeat(x, k), state.cache)
        output = self.model.step(xp.reshape(ids, [-1]), step, cache)
        best = self._best(state, likely, output)  # [B]
        token = xp.take_along(ids, best[:, None])[:, 0]
        token = xp.where(state.alive, token, xp.array(self.plan.pad))
        rows = best + xp.arange(xp.shape(ids)[0]) * k
        kept = xp.map(lambda x: xp.take(x, rows), output)
        return _Contrast(
            step=step + 1,
            alive=state.alive & ~self.ended(token),
            tokens=self.put(state.tokens, step, token),
            scores=self.keep_scores(state.scores, step, logits),
            logits=kept.logits,
            hidden=self._put_hidden(state, kept.hidden),
            cache=kept.cache,
            states=self.keep_states(state.states, step, kept.states),
        )

    def _best(self, state: _Contrast, likely: Array, output: StepOutput) -> Array:
        """Which of the candidates, with probabilities ``likely`` [B,k], is best."""
        xp, alpha = self.xp, self.plan.penalty_alpha
        B, k = xp.shape(likely)
        new = xp.reshape(output.hidden, [B, k, state.hidden.shape[-1]])
        likeness = _cosines(xp, state.hidden, new)  # [B,T,k]
        never = xp.array(float("-inf"), "float32")
        given = self._given(state.step)[:, :, None]
        closest = xp.max(xp.where(given, likeness, never), 1)  # [B,k]
        return xp.argmax((1 - alpha) * likely - alpha * closest)

    def _given(self, step: Any) -> Array:
        """Whether each position [B,T] has a token, after ``step`` new ones."""
        xp, ids = self.xp, self.prompt.ids
        B, S = xp.shape(ids)
        room = xp.full([B, self.plan.slots], True, "bool")
        return (self._slot() < S + step) & xp.concat([ids >= 0, room], 1)

    def _put_hidden(self, state: _Contrast, hidden: Array) -> Array:
        """The hidden states with one token's ``hidden`` [B,1,W] after them."""
        now = self._slot() == self.xp.shape(self.prompt.ids)[1] + state.step
        hidden = self.xp.cast(hidden, "float32")
        return self.xp.where(now[:, :, None], hidden, state.hidden)

    def _slot(self) -> Array:
        S = self.xp.shape(self.prompt.ids)[1]
        return self.xp.arange(S + self.plan.slots)[None]


def _cosines(xp: Arrays, old: Array, new: Array) -> Array:
    """Cosines [B,T,k] of hidden states [B,T,W] and [B,k,W]; 0 where one has none."""

    def unit(x: Array) -> Array:
        x = xp.cast(x, "float32")
        size = xp.sqrt(xp.sum(x * x, -1))[:, :, None]
        return x / xp.where(size > 0, size, xp.array(1.0, "float32"))

    old, new = unit(old), unit(new)
    by_candidate = [
        xp.sum(old * new[:, i : i + 1], -1) for i in range(xp.shape(new)[1])
    ]
    return xp.stack(by_candidate, 2)
