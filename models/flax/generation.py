"""``generate`` of ``FlaxOPTForCausalLM``: the searches of ``generation/`` in JAX.

Called on arrays, one compiled program runs the whole search; the next call of about the
same size runs it again. Inside a ``jax.jit`` the search becomes part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..config import OPTConfig
from ..generation import plan as plans
from ..generation.beam_search import BeamStyle
from ..generation.call import Defaults, merged, rounded, row_seeds, search, seed_words
from ..generation.config import GenerationConfig
from ..generation.plan import Numbers, Plan
from ..generation.search import Prompt, SearchResult, StepOutput
from ..outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput
from . import model as opt
from . import sampling
from .arrays import ARRAYS
from .checks import check_inputs, library_of
from .modules import OPTModule, update
from .params import plain

STYLE = BeamStyle(never=-1e7, best_end=False, scored_running=False)


class Stepper:
    """A model with a prompt, as the searches drive it (``generation/search.py``).

    The cache has room for S + N tokens from the start: L pairs [R,H,S+N,D].
    """

    def __init__(self, config: OPTConfig, params, ids, mask, slots: int) -> None:
        self._config, self._params = config, params
        self._ids, self._mask, self._slots = ids, mask, slots
        self._lengths = jnp.sum(mask, axis=1)

    def prefill(self, rows: int) -> StepOutput:
        """Feed the prompts."""

        def store(_, k, v):
            room = [(0, 0), (0, 0), (0, self._slots), (0, 0)]
            return k, v, (jnp.pad(k, room), jnp.pad(v, room))

        done = opt.base_model(
            self._config, self._params, self._ids, self._mask, store=store
        )
        return jax.tree.map(lambda x: ARRAYS.repeat(x, rows), self._output(done))

    def step(self, token, new, cache) -> StepOutput:
        """Feed the ``new``-th new token of each row."""
        config, S = self._config, self._ids.shape[1]
        last = config.max_position_embeddings - 1
        at = jnp.minimum(self._each(token, self._lengths) + new, last)
        embeds = opt.take(self._params["embed_tokens"], token)[:, None]
        hidden = opt.embed(config, self._params, embeds, at[:, None])
        seen = self._each(token, self._mask).astype(bool)
        now = jnp.arange(self._slots) <= new
        now = jnp.broadcast_to(now, (len(token), self._slots))
        mask = jnp.concatenate([seen, now], axis=1)[:, None, None, :]
        store = partial(update, S + new)
        done = opt.decoder(config, self._params, hidden, mask, past=cache, store=store)
        return self._output(done)

    def draw(self, logits, numbers: Numbers, new):
        """A token of each row."""
        at = self._each(logits, self._lengths) + new
        return sampling.draw(logits, numbers.sampling, at)

    def warp(self, logits, numbers: Numbers):
        """Logits after temperature, top-k and top-p."""
        x, kept = sampling.warp(logits, numbers.sampling)
        return jnp.where(kept, x, -jnp.inf)

    def noise(self, numbers: Numbers, new, size: int):
        """The noise of the ``new``-th new token."""
        seed = numbers.sampling.seed
        at = self._each(seed, self._lengths) + new
        return sampling.gumbel(seed, at, size)

    def _output(self, done) -> StepOutput:
        last = done.last_hidden_state[:, -1]
        logits = opt.lm_logits(self._config, self._params, last)
        return StepOutput(
            logits.astype(jnp.float32), done.last_hidden_state, done.cache
        )

    def _each(self, rows, x):
        """``x`` [B,…], repeated to as many rows as ``rows`` has."""
        return ARRAYS.repeat(x, rows.shape[0] // x.shape[0])


@partial(jax.jit, static_argnums=(0, 1))
def _program(module: OPTModule, plan: Plan, params, ids, mask, padding, numbers):
    return _search(module, plan, params, ids, mask, padding, numbers)


def _search(module: OPTModule, plan: Plan, params, ids, mask, padding, numbers):
    weights = module.apply({"params": params}, method="nested_params")
    stepper = Stepper(module.config, weights, ids, mask, plan.slots)
    prompt = Prompt(jnp.where(mask > 0, ids, -1), padding)
    return search(ARRAYS, stepper, plan, numbers, prompt, STYLE)


class Generation:
    """The part of ``FlaxOPTForCausalLM`` that generates."""

    config: OPTConfig
    module: Any
    params: Any

    @property
    def generation_config(self) -> GenerationConfig:
        """How :meth:`generate` works unless a call says otherwise."""
        return self._defaults().get()

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._defaults().set(value)

    def generate(
        self,
        input_ids,
        generation_config: Any = None,
        prng_key: Any = None,
        trace: bool = True,
        params: Mapping[str, Any] | None = None,
        logits_processor: Sequence[Callable[..., Any]] | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ):
        """Continue ``input_ids`` (B, S): an output with ``sequences`` (rows,
        max_length), prompts included, the padding token after the end.

        ``options`` are fields of :class:`GenerationConfig`, which win over
        ``generation_config``, and ``attention_mask`` (B, S): pad on the left.
        ``params`` replace the model's own. ``prng_key`` (a key, taken as two words) or
        ``seed`` (a number) choose what is sampled; the same tokens come from a served
        model with the same seed. ``trace=False`` runs operation by operation.
        ``logits_processor`` are functions ``(input_ids, scores, length) -> scores``.
        Raises ValueError for options that cannot be, and for more tokens than there
        are positions.
        """
        config, rest = merged(
            self.generation_config, generation_config, options, {"attention_mask"}
        )
        plans.check(config, self.config.vocab_size)
        ids, mask, _ = check_inputs(
            self.config, input_ids, rest.get("attention_mask"), None, None
        )
        ids = ids.astype(jnp.int32)
        traced = any(isinstance(x, Tracer) for x in (ids, mask))
        B, S = ids.shape
        longest = S if traced else int(mask.sum(1).max())
        positions = self.config.max_position_embeddings
        limit = plans.new_tokens(config, S, S - longest + positions)
        room, padding = rounded(limit), rounded(S) - S
        if logits_processor or traced or not trace:
            room, padding = limit, 0
        plan = plans.make_plan(
            config,
            slots=room,
            forced_from=S - 1,
            custom=tuple(logits_processor or ()),
        )
        left = [(0, 0), (padding, 0)]
        given_ids, given_mask = (library_of(x).pad(x, left) for x in (ids, mask))
        result: SearchResult = (_program if trace else _search)(
            self.module,
            plan,
            plain(self.params if params is None else params),
            given_ids,
            given_mask,
            padding,
            self._numbers(config, B, S, limit, prng_key, seed),
        )
        return _result(plan, ids, result, limit)

    def _defaults(self) -> Defaults:
        if "_generation_defaults" not in self.__dict__:
            self.__dict__["_generation_defaults"] = Defaults(self.config)
        return self.__dict__["_generation_defaults"]

    def _numbers(self, config, B: int, S: int, limit: int, prng_key, seed) -> Numbers:
        """The numbers for all rows. Without a key the seed is 0, as in Transformers."""
        copies = max(config.num_beams, config.num_return_sequences)
        if plans.mode(config) == "contrastive":
            copies = 1
        seed = config.seed if seed is None else seed
        if prng_key is not None:
            if jnp.issubdtype(prng_key.dtype, jax.dtypes.prng_key):
                prng_key = jax.random.key_data(prng_key)
            offsets = jnp.stack([jnp.arange(copies), jnp.zeros(copies)], 1)
            words = jax.lax.bitcast_convert_type(prng_key.astype(jnp.uint32), jnp.int32)
            seeds = words[None] + offsets.astype(jnp.int32)
        else:
            seeds = row_seeds(seed_words(seed or 0), copies)
        numbers = plans.make_numbers(config, limit=limit, prompt=S)
        sampling = jax.tree.map(
            lambda x: np.full(B * copies, x, np.asarray(x, _dtype(x)).dtype),
            numbers.sampling,
        )
        seeds = jnp.tile(seeds, (B, 1))
        return numbers._replace(sampling=sampling._replace(seed=seeds))


def _dtype(x: Any) -> Any:
    return np.float32 if isinstance(x, float) else np.int32


def _result(plan: Plan, ids, result: SearchResult, limit: int):
    """What ``generate`` returns."""
    copies = result.tokens.shape[0] // ids.shape[0]
    prompts = ARRAYS.repeat(ids, copies)
    sequences = jnp.concatenate([prompts, result.tokens[:, :limit]], axis=1)
    if plan.mode.startswith("beam"):
        return FlaxBeamSearchOutput(sequences=sequences, scores=result.sequence_scores)
    kind = FlaxSampleOutput if plan.mode == "sample" else FlaxGreedySearchOutput
    return kind(sequences=sequences)
