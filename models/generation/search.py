"""What every search shares: what it is given, asks of a model, and returns.

A search drives a :class:`Model`: a prompt is fed once, then one token of each row at a
time. All shapes are fixed from the start: S columns of prompt and N of new tokens.

    B prompts   R rows (B, times beams or candidates)   S prompt   N new tokens
    T = S + N   V vocabulary   W width of the hidden states
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .arrays import Array, Arrays
from .logits_processors import History
from .plan import Numbers, Plan


class StepOutput(NamedTuple):
    """What a model computes for the tokens that it is fed."""

    logits: Array  # [R,V] float32, of the last token
    hidden: Array  # [R,S,W], or [R,1,W] after a step
    cache: Any
    states: Any = ()  # what a plan with states asks of all layers, see States


class Model(Protocol):
    """What a search needs from a framework's model."""

    def prefill(self, rows: int) -> StepOutput:
        """Feed the prompts; each of them ``rows`` times."""
        ...

    def step(self, token: Array, new: Any, cache: Any) -> StepOutput:
        """Feed ``token`` [R], the ``new``-th new one of its row (0 is the first)."""
        ...

    def draw(self, logits: Array, numbers: Numbers, new: Any) -> Array:
        """A token [R] from processed logits, by the counter-based noise."""
        ...

    def warp(self, logits: Array, numbers: Numbers) -> Array:
        """Logits after temperature, top-k and top-p: −inf for what they leave out."""
        ...

    def noise(self, numbers: Numbers, new: Any, size: int) -> Array:
        """The noise [R,``size``] of the ``new``-th new token."""
        ...


class States(NamedTuple):
    """What all layers computed for the tokens fed; () where nobody asked.

    After a prompt of S tokens; after one more token S is 1. Of a whole search the
    arrays are stacked, one step after the other, with a leading axis [N].
    """

    hidden_states: Any = ()  # L+1 of [R,S,E]
    attentions: Any = ()  # L of [R,H,S,T]


class Prompt(NamedTuple):
    """What is continued."""

    ids: Array  # [B,S] int32; −1 is padding
    padding: Any  # columns at the start that the caller didn't give


class SearchResult(NamedTuple):
    """What a search returns; None for fields that its kind of search does not have."""

    tokens: Array  # [rows,N], pad after the end
    steps: Any  # how many of the N were used
    scores: Array | None = None  # [N,R,V], what was chosen from
    sequence_scores: Array | None = None  # [rows]
    beam_indices: Array | None = None  # [rows,N]; −1 after the end
    prompt_states: Any = ()  # of the prompts
    states: Any = ()  # [N,…]; the entries from ``steps`` − 1 on are arbitrary


@dataclass(frozen=True, eq=False)
class Search:
    """One call's search; the kinds of search are its subclasses."""

    xp: Arrays
    model: Model
    plan: Plan
    numbers: Numbers
    prompt: Prompt

    def run(self) -> SearchResult:
        """Continue the prompts."""
        raise NotImplementedError

    def process(self, tokens: Array, new: Any, logits: Array) -> Array:
        """``logits`` [R,V] after all rules; rows have ``new`` of ``tokens`` [R,N]."""
        xp, plan = self.xp, self.plan
        ids, padding = self.prompt
        length = xp.shape(ids)[1] + new
        past = xp.concat([xp.repeat(ids, plan.copies), tokens], 1)
        history = History(past, length, new, padding)
        for rule in plan.rules(self.numbers):
            logits = rule(xp, history, logits)
        for function in plan.custom:
            shown = xp.where(history.tokens < 0, xp.array(plan.pad), history.tokens)
            logits = function(shown, logits, history.used)
        return logits

    def ended(self, token: Array) -> Array:
        """Whether tokens end a sequence."""
        ends = token < 0
        for eos in self.plan.eos:
            ends |= token == eos
        return ends

    def unfinished(self, state: Any) -> Any:
        """Whether there is room for another token, and a row that wants one."""
        return (state.step < self.numbers.limit) & self.xp.any(state.alive)

    def put(self, tokens: Array, step: Any, token: Array) -> Array:
        """``tokens`` [R,N] with ``token`` [R] as the ``step``-th."""
        now = (self.xp.arange(self.plan.slots) == step)[None]
        return self.xp.where(now, token[:, None], tokens)

    def room_for_scores(self, R: Any, V: int) -> Array:
        """Zeros [N,R,V], or [0,R,V] where the plan keeps no scores."""
        steps = self.plan.slots if self.plan.with_scores else 0
        return self.xp.full([steps, R, V], 0.0, "float32")

    def keep_scores(self, scores: Array, step: Any, chosen_from: Array) -> Array:
        """``scores`` [N,R,V] with ``chosen_from`` as the ``step``-th, if kept."""
        if not self.plan.with_scores:
            return scores
        return self.xp.write(scores, step, chosen_from)

    def room_for_states(self, states: Any) -> Any:
        """Zeros [N,…] for the states of N steps, of which ``states`` are the prompt's.

        Of the S prompt tokens only one is left, keys become S + N.
        """
        xp, N = self.xp, self.plan.slots
        T = xp.shape(self.prompt.ids)[1] + N

        def room(x: Array) -> Array:
            R, *_, last = sizes = xp.shape(x)
            rest = [1, last] if len(sizes) == 3 else [sizes[1], 1, T]
            return xp.full([N, R, *rest], 0.0, x.dtype)

        return xp.map(room, states)

    def keep_states(self, kept: Any, step: Any, states: Any) -> Any:
        """``kept`` [N,…] with the ``states`` of one step as the ``step``-th."""
        write = self.xp.write
        return self.xp.map(lambda of_all, x: write(of_all, step, x), kept, states)

    def result(
        self, end: Any, prompt_output: StepOutput, **fields: Array
    ) -> SearchResult:
        """Of a search's last state and what only its kind returns."""
        return SearchResult(
            steps=end.step,
            scores=end.scores if self.plan.with_scores else None,
            prompt_states=prompt_output.states,
            states=end.states,
            **fields,
        )
