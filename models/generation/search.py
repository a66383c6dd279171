"""Greedy decoding, sampling and contrastive search, once for all frameworks.

A search drives a :class:`Model`: a prompt is fed once, then one token of each row at a
time. All shapes are fixed from the start: S columns of prompt and N of new tokens.

    B prompts   R rows (B, times beams or candidates)   S prompt   N new tokens
    T = S + N   V vocabulary   W width of the hidden states
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from .arrays import Array, Arrays, log_softmax
from .logits_processors import History
from .plan import Numbers, Plan


class Fed(NamedTuple):
    """What a model gives for the tokens that it was fed."""

    logits: Array  # [R,V] float32, of the last token
    hidden: Array  # [R,S,W], or [R,1,W] after a step
    cache: Any
    states: Any = ()  # what a plan with states wants of all layers, see States


class Model(Protocol):
    """What a search needs from a framework's model."""

    def prefill(self, rows: int) -> Fed:
        """Feed the prompts; each of them ``rows`` times."""
        ...

    def step(self, token: Array, new: Any, cache: Any) -> Fed:
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


class Found(NamedTuple):
    """What a search returns; None for fields that its kind of search does not have."""

    tokens: Array  # [rows,N], pad after the end
    steps: Any  # how many of the N were used
    scores: Array | None = None  # [N,R,V], what was chosen from
    sequence_scores: Array | None = None  # [rows]
    beam_indices: Array | None = None  # [rows,N]; −1 after the end
    prompt_states: Any = ()  # of the prompts
    states: Any = ()  # [N,…]; the entries from ``steps`` − 1 on are arbitrary


class _Rows(NamedTuple):
    step: Any  # new tokens so far
    token: Array  # [R], fed next
    alive: Array  # [R]
    tokens: Array  # [R,N]
    scores: Array  # [N,R,V], or [0,R,V]
    cache: Any
    states: Any


def process(
    xp: Arrays, plan: Plan, numbers: Numbers, prompt: Prompt, tokens: Array, new, logits
) -> Array:
    """``logits`` [R,V] after all rules, for rows that have ``new`` of ``tokens``."""
    S = xp.shape(prompt.ids)[1]
    ids = xp.repeat(prompt.ids, plan.copies)
    history = History(xp.concat([ids, tokens], 1), S + new, new, prompt.padding)
    for rule in plan.rules(numbers):
        logits = rule(xp, history, logits)
    for function in plan.custom:
        shown = xp.where(history.tokens < 0, xp.array(plan.pad), history.tokens)
        logits = function(shown, logits, history.used)
    return logits


def room_for_states(xp: Arrays, plan: Plan, states: Any, S: int) -> Any:
    """Zeros [N,…] for the states of N steps, of which ``states`` are the prompt's.

    Of the S prompt tokens only one is left, keys become S + N.
    """

    def room(x: Array) -> Array:
        R, *_, last = sizes = xp.shape(x)
        rest = [1, last] if len(sizes) == 3 else [sizes[1], 1, S + plan.slots]
        return xp.full([plan.slots, R, *rest], 0.0, x.dtype)

    return xp.map(room, states)


def keep_states(xp: Arrays, kept: Any, i: Any, states: Any) -> Any:
    """``kept`` [N,…] with the ``states`` of one step as the i-th."""
    return xp.map(lambda all_steps, x: xp.write(all_steps, i, x), kept, states)


def ended(xp: Arrays, plan: Plan, token: Array) -> Array:
    """Whether tokens end a sequence."""
    ends = token < 0
    for eos in plan.eos:
        ends |= token == eos
    return ends


def choose_rows(
    xp: Arrays, model: Model, plan: Plan, numbers: Numbers, prompt: Prompt
) -> Found:
    """Greedy decoding and sampling: each row goes its own way."""
    prompt_fed = model.prefill(plan.copies)
    (R, V), S = xp.shape(prompt_fed.logits), xp.shape(prompt.ids)[1]

    def chosen(state: _Rows, fed: Fed) -> _Rows:
        logits = process(
            xp, plan, numbers, prompt, state.tokens, state.step, fed.logits
        )
        scores = state.scores
        if plan.mode == "sample":
            token = model.draw(logits, numbers, state.step)
            shown = model.warp(logits, numbers) if plan.with_scores else logits
        else:
            token, shown = xp.argmax(logits), logits
        if plan.with_scores:
            scores = xp.write(scores, state.step, shown)
        token = xp.where(state.alive, token, xp.array(plan.pad))
        now = (xp.arange(plan.slots) == state.step)[None]
        return _Rows(
            step=state.step + 1,
            token=token,
            alive=state.alive & ~ended(xp, plan, token),
            tokens=xp.where(now, token[:, None], state.tokens),
            scores=scores,
            cache=fed.cache,
            states=state.states,
        )

    start = _Rows(
        step=xp.array(0),
        token=xp.full([R], plan.pad, "int32"),
        alive=xp.full([R], True, "bool"),
        tokens=xp.full([R, plan.slots], plan.pad, "int32"),
        scores=xp.full([plan.slots if plan.with_scores else 0, R, V], 0.0, "float32"),
        cache=None,
        states=room_for_states(xp, plan, prompt_fed.states, S),
    )

    def body(state: _Rows) -> _Rows:
        last = state.step - 1
        fed = model.step(state.token, last, state.cache)
        states = keep_states(xp, state.states, last, fed.states)
        return chosen(state._replace(states=states), fed)

    end = xp.while_loop(
        lambda state: (state.step < numbers.limit) & xp.any(state.alive),
        body,
        chosen(start, prompt_fed),
    )
    return Found(
        tokens=end.tokens,
        steps=end.step,
        scores=end.scores if plan.with_scores else None,
        prompt_states=prompt_fed.states,
        states=end.states,
    )


class _Contrast(NamedTuple):
    step: Any
    alive: Array  # [B]
    tokens: Array  # [B,N]
    scores: Array
    logits: Array  # [B,V], to choose from next
    hidden: Array  # [B,T,W], of all tokens so far
    cache: Any
    states: Any


def contrastive_search(
    xp: Arrays, model: Model, plan: Plan, numbers: Numbers, prompt: Prompt
) -> Found:
    """The likely token that is least like what is there already.

    Of the k likeliest tokens the one with the largest (1 − α) · probability − α · (the
    largest cosine between its hidden state and those before it), by Su et al. 2022,
    "A Contrastive Framework for Neural Text Generation".
    """
    k, alpha = plan.top_k, plan.penalty_alpha
    fed = model.prefill(1)
    (B, V), S = xp.shape(fed.logits), xp.shape(prompt.ids)[1]
    W = fed.hidden.shape[-1]
    real = xp.concat([prompt.ids >= 0, xp.full([B, plan.slots], True, "bool")], 1)

    def body(state: _Contrast) -> _Contrast:
        logits = process(
            xp, plan, numbers, prompt, state.tokens, state.step, state.logits
        )
        scores = state.scores
        if plan.with_scores:
            scores = xp.write(scores, state.step, logits)
        likely, ids = xp.top_k(xp.exp(log_softmax(xp, logits)), k)  # [B,k]
        cache = xp.map(lambda x: xp.repeat(x, k), state.cache)
        fed = model.step(xp.reshape(ids, [-1]), state.step, cache)
        new = xp.reshape(fed.hidden, [B, k, W])
        likeness = _cosines(xp, state.hidden, new)  # [B,T,k]
        slot = xp.arange(S + plan.slots)[None]
        given = (slot < S + state.step) & real
        never = xp.array(float("-inf"), "float32")
        closest = xp.max(xp.where(given[:, :, None], likeness, never), 1)  # [B,k]
        best = xp.argmax((1 - alpha) * likely - alpha * closest)  # [B]
        token = xp.take_along(ids, best[:, None])[:, 0]
        token = xp.where(state.alive, token, xp.array(plan.pad))
        rows = best + xp.arange(B) * k
        hidden = xp.take(xp.cast(fed.hidden, "float32"), rows)
        return _Contrast(
            step=state.step + 1,
            alive=state.alive & ~ended(xp, plan, token),
            tokens=xp.where(
                (xp.arange(plan.slots) == state.step)[None],
                token[:, None],
                state.tokens,
            ),
            scores=scores,
            logits=xp.take(fed.logits, rows),
            hidden=xp.where((slot == S + state.step)[:, :, None], hidden, state.hidden),
            cache=xp.map(lambda x: xp.take(x, rows), fed.cache),
            states=keep_states(
                xp,
                state.states,
                state.step,
                xp.map(lambda x: xp.take(x, rows), fed.states),
            ),
        )

    room = xp.full([B, plan.slots, W], 0.0, "float32")
    start = _Contrast(
        step=xp.array(0),
        alive=xp.full([B], True, "bool"),
        tokens=xp.full([B, plan.slots], plan.pad, "int32"),
        scores=xp.full([plan.slots if plan.with_scores else 0, B, V], 0.0, "float32"),
        logits=fed.logits,
        hidden=xp.concat([xp.cast(fed.hidden, "float32"), room], 1),
        cache=fed.cache,
        states=room_for_states(xp, plan, fed.states, S),
    )
    end = xp.while_loop(
        lambda state: (state.step < numbers.limit) & xp.any(state.alive), body, start
    )
    return Found(
        tokens=end.tokens,
        steps=end.step,
        scores=end.scores if plan.with_scores else None,
        prompt_states=fed.states,
        states=end.states,
    )


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
