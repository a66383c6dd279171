"""``generate`` of ``TFOPTForCausalLM``: the searches of ``generation/`` in TensorFlow.

Called eagerly, one compiled program runs the whole search; the next call of about the
same size runs it again. Inside a ``tf.function`` the search becomes part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from ..config import OPTConfig
from ..generation import plan as plans
from ..generation.beam_search import BeamStyle
from ..generation.call import Defaults, merged, rounded, row_seeds, search, seed_words
from ..generation.config import GenerationConfig
from ..generation.plan import Numbers, Plan
from ..generation.search import Prompt, SearchResult, States, StepOutput
from ..outputs import (
    TFBeamSampleDecoderOnlyOutput,
    TFBeamSearchDecoderOnlyOutput,
    TFContrastiveSearchDecoderOnlyOutput,
    TFGreedySearchDecoderOnlyOutput,
    TFSampleDecoderOnlyOutput,
)
from . import model as opt
from . import sampling
from .arrays import ARRAYS
from .inputs import check_ids, check_mask

STYLE = BeamStyle(never=-1e9, best_end=True, scored_running=True)


OUTPUTS = {
    "greedy": TFGreedySearchDecoderOnlyOutput,
    "sample": TFSampleDecoderOnlyOutput,
    "contrastive": TFContrastiveSearchDecoderOnlyOutput,
    "beam": TFBeamSearchDecoderOnlyOutput,
    "beam_sample": TFBeamSampleDecoderOnlyOutput,
}


class Stepper:
    """A model with a prompt, as the searches drive it (``generation/search.py``).

    The cache has room for S + N tokens from the start: L pairs [R,H,S+N,D].
    """

    def __init__(
        self, config: OPTConfig, params, ids, mask, plan: Plan, compiled: bool
    ) -> None:
        self._config, self._params = config, params
        self._ids, self._mask, self._slots = ids, mask, plan.slots
        self._compiled = compiled
        self._lengths = tf.reduce_sum(mask, axis=1)
        self._kept: dict[str, Any] = {
            "output_hidden_states": plan.with_hidden_states,
            "output_attentions": plan.with_attentions,
        }

    def prefill(self, rows: int) -> StepOutput:
        """Feed the prompts."""

        def store(_, k, v):
            room = [[0, 0], [0, 0], [0, self._slots], [0, 0]]
            return k, v, (tf.pad(k, room), tf.pad(v, room))

        done = opt.base_model(
            self._config, self._params, self._ids, self._mask, store=store, **self._kept
        )
        return tf.nest.map_structure(
            lambda x: ARRAYS.repeat(x, rows), self._output(done)
        )

    def step(self, token, new, cache) -> StepOutput:
        """Feed the ``new``-th new token of each row."""
        config, S = self._config, opt.shape(self._ids)[1]
        at = tf.minimum(self._each(token, self._lengths) + new, _last(config))
        embeds = opt.take(self._params["embed_tokens"], token)[:, None]
        hidden = opt.embed(config, self._params, embeds, at[:, None])
        seen = tf.cast(self._each(token, self._mask), tf.bool)
        R = opt.shape(token)[0]
        now = tf.broadcast_to(tf.range(self._slots) <= new, [R, self._slots])
        mask = tf.concat([seen, now], axis=1)[:, None, None, :]

        def store(old, k, v):
            k, v = (
                self._write(*pair, S + new) for pair in zip(old, (k, v), strict=True)
            )
            return k, v, (k, v)

        options = {"past": cache, "store": store, **self._kept}
        return self._output(opt.decoder(config, self._params, hidden, mask, **options))

    def draw(self, logits, numbers: Numbers, new):
        """A token of each row."""
        at = self._each(logits, self._lengths) + new
        return sampling.draw(logits, numbers.sampling, at)

    def warp(self, logits, numbers: Numbers):
        """Logits after temperature, top-k and top-p."""
        x, kept = sampling.warp(logits, numbers.sampling)
        return tf.where(kept, x, float("-inf"))

    def noise(self, numbers: Numbers, new, size: int):
        """The noise of the ``new``-th new token."""
        seed = numbers.sampling.seed
        at = self._each(seed, self._lengths) + new
        return sampling.gumbel(seed, at, size)

    def _output(self, done) -> StepOutput:
        last = done.last_hidden_state[:, -1]
        logits = opt.lm_logits(self._config, self._params, last)
        states = States(done.hidden_states or (), done.attentions or ())
        return StepOutput(
            tf.cast(logits, tf.float32), done.last_hidden_state, done.cache, states
        )

    def _each(self, rows, x):
        """``x`` [B,…], repeated to as many rows as ``rows`` has."""
        R, B = opt.shape(rows)[0], opt.shape(x)[0]
        known = isinstance(R, int) and isinstance(B, int)
        return ARRAYS.repeat(x, R // B) if known else tf.repeat(x, R // B, axis=0)

    def _write(self, buffer, rows, slot):
        """``rows`` [R,H,1,D] into ``buffer`` [R,H,T,D] at ``slot``."""
        if self._compiled:
            at = tf.stack([0, 0, slot, 0])
            return xla.dynamic_update_slice(buffer, rows, at)
        R, H, T, D = opt.shape(buffer)
        at = tf.range(R * H)[:, None] * T + slot
        flat = tf.reshape(buffer, [R * H * T, D])
        flat = tf.tensor_scatter_nd_update(flat, at, tf.reshape(rows, [R * H, D]))
        return tf.reshape(flat, [R, H, T, D])


def _last(config: OPTConfig) -> int:
    return config.max_position_embeddings - 1


class _Programs(dict):
    """Compiled searches. Not a plain dict, which Keras would take for weights."""


class Generation:
    """The part of ``TFOPTForCausalLM`` that generates."""

    config: OPTConfig
    params: Callable[[], dict[str, Any]]

    @property
    def generation_config(self) -> GenerationConfig:
        """How :meth:`generate` works unless a call says otherwise."""
        return self._defaults().get()

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._defaults().set(value)

    @tf.autograph.experimental.do_not_convert  # it is written for graphs already
    def generate(
        self,
        inputs=None,
        generation_config: Any = None,
        logits_processor: Sequence[Callable[..., Any]] | None = None,
        seed: int | Sequence[int] | None = None,
        *,
        jit_compile: bool = True,
        **options: Any,
    ):
        """Continue ``inputs`` (B, S): token ids (rows, length), prompts included.

        ``options`` are fields of :class:`GenerationConfig`, which win over
        ``generation_config``, and ``attention_mask`` (B, S); without a mask the padding
        token is padding. Pad on the left. ``logits_processor`` are functions
        ``(input_ids, scores, length) -> scores`` in TensorFlow. ``seed`` is a number,
        or its two words; the same tokens come from a served model with the same seed.

        Eagerly rows are cut where the last one ended; in a graph they have the full
        length, with the padding token after the end. ``jit_compile=False`` spares the
        first call XLA's compilation and is slower from then on. Raises ValueError for
        options that cannot be, and for more tokens than there are positions.
        """
        config, rest = merged(
            self.generation_config,
            generation_config,
            options,
            {"input_ids", "attention_mask"},
        )
        plans.check(config, self.config.vocab_size)
        ids = rest.get("input_ids", inputs)
        if ids is None:
            if config.bos_token_id is None:
                raise ValueError("without inputs, generate needs a bos_token_id")
            ids = [[config.bos_token_id]]
        ids = tf.cast(ids, tf.int32)
        if ids.shape.rank != 2:
            raise ValueError(f"inputs should have shape (B, S), got {ids.shape}")
        ids = check_ids(self.config, ids, "inputs")
        mask = self._prompt_mask(ids, rest.get("attention_mask"), config)
        if tf.executing_eagerly():
            result = self._run(config, ids, mask, logits_processor, seed, jit_compile)
            return _result(config, ids, result, steps=int(result.steps))
        result = self._trace(config, ids, mask, logits_processor, seed)
        return _result(config, ids, result, steps=None)

    def _defaults(self) -> Defaults:
        if "_generation_defaults" not in self.__dict__:
            object.__setattr__(self, "_generation_defaults", Defaults(self.config))
            object.__setattr__(self, "_programs", _Programs())
        return self.__dict__["_generation_defaults"]

    def _prompt_mask(self, ids, mask, config: GenerationConfig):
        if mask is not None:
            return check_mask(mask, *opt.shape(ids))
        pad, eos = config.pad_token_id, plans.eos_ids(config)
        if pad is None or pad in eos:
            return tf.ones_like(ids)
        return tf.cast(ids != pad, tf.int32)

    def _run(self, config, ids, mask, processors, seed, jit_compile):
        """Eagerly: by a program that other calls of about this size use too."""
        B, S = ids.shape
        longest = int(tf.reduce_max(tf.reduce_sum(mask, 1)))
        limit = plans.new_tokens(config, S, S - longest + self._positions())
        room, padding = rounded(limit), rounded(S) - S
        if processors:  # they see the prompt as it came
            room, padding = limit, 0
        plan = plans.make_plan(
            config,
            slots=room,
            forced_from=0,
            custom=tuple(processors or ()),
            details=True,
        )
        numbers = self._numbers(config, B, S, limit, seed)
        left = [[0, 0], [padding, 0]]
        ids, mask = tf.pad(ids, left), tf.pad(mask, left)
        numbers = tf.nest.map_structure(tf.convert_to_tensor, numbers)
        given = ids, mask, tf.constant(padding), numbers
        # Kept by us: a tf.function warns of many traces, which are meant here.
        key = plan, jit_compile, tuple(ids.shape), self.config.to_json_string()
        programs = self.__dict__["_programs"]
        if key not in programs:
            programs[key] = tf.function(
                lambda *given: self._search(plan, *given, compiled=jit_compile),
                jit_compile=jit_compile,
                autograph=False,
            ).get_concrete_function(*given)
        return programs[key](*given)

    def _trace(self, config, ids, mask, processors, seed) -> SearchResult:
        """Inside a ``tf.function``: at the length that was asked for."""
        B, S = opt.shape(ids)
        if isinstance(S, int):
            limit = plans.new_tokens(config, S, self._positions())
        elif config.max_new_tokens is None:
            raise ValueError("for prompts of an unknown length set max_new_tokens")
        else:
            limit = config.max_new_tokens
        graph = ops.get_default_graph()
        compiled = control_flow_util.GraphOrParentsInXlaContext(graph)
        plan = plans.make_plan(
            config, slots=limit, forced_from=0, custom=tuple(processors or ())
        )
        numbers = self._numbers(config, B, S, limit, seed)
        return self._search(plan, ids, mask, 0, numbers, compiled=compiled)

    def _positions(self) -> int:
        return self.config.max_position_embeddings

    def _numbers(self, config: GenerationConfig, B, S, limit: int, seed) -> Numbers:
        """The numbers for all rows; without a seed one comes from ``tf.random``."""
        copies = max(config.num_beams, config.num_return_sequences)
        if config.penalty_alpha:
            copies = 1
        seed = config.seed if seed is None else seed
        if seed is None and config.do_sample:
            words = tf.random.uniform([2], tf.int32.min, tf.int32.max, tf.int32)
            offsets = tf.stack([tf.range(copies), tf.zeros([copies], tf.int32)], 1)
            seeds = words[None] + offsets
        else:
            seeds = row_seeds(seed_words(seed or 0), copies)
        numbers = plans.make_numbers(config, limit=limit, prompt=S)
        sampling = tf.nest.map_structure(
            lambda x: tf.fill([B * copies], x), numbers.sampling
        )
        seeds = tf.tile(tf.convert_to_tensor(seeds), [B, 1])
        return numbers._replace(sampling=sampling._replace(seed=seeds))

    def _search(
        self, plan: Plan, ids, mask, padding, numbers, *, compiled
    ) -> SearchResult:
        stepper = Stepper(self.config, self.params(), ids, mask, plan, compiled)
        prompt = Prompt(tf.where(mask > 0, ids, -1), padding)
        return search(ARRAYS, stepper, plan, numbers, prompt, STYLE)


def _result(config: GenerationConfig, ids, result: SearchResult, steps: int | None):
    """What ``generate`` returns: the rows, or an output with more.

    ``steps`` is how many new tokens are shown; None in a graph: all there is room for.
    """
    B, S = opt.shape(ids)
    copies = opt.shape(result.tokens)[0]
    prompts = tf.repeat(ids, copies // B, axis=0)
    sequences = tf.concat([prompts, result.tokens[:, :steps]], axis=1)
    if not config.return_dict_in_generate:
        return sequences
    more: dict[str, Any] = {}
    if result.beam_indices is not None:
        more["sequences_scores"] = result.sequence_scores
        more["beam_indices"] = result.beam_indices[:, :steps]
    if steps is not None:
        if result.scores is not None:
            more["scores"] = tuple(tf.unstack(result.scores[:steps]))
        more["hidden_states"] = _hidden_states(result, S, steps)
        more["attentions"] = _attentions(result, S, steps)
    return OUTPUTS[plans.mode(config)](sequences=sequences, **more)


def _hidden_states(result: SearchResult, S: int, steps: int):
    """For each new token those of what was fed for it: L+1 of (rows, fed, E)."""
    first = tuple(x[:, -S:] for x in result.prompt_states.hidden_states)
    rest = (tuple(x[i] for x in result.states.hidden_states) for i in range(steps - 1))
    return (first, *rest) if first else None


def _attentions(result: SearchResult, S: int, steps: int):
    """For each new token L of (rows, H, fed, length); without our own padding."""
    if not result.prompt_states.attentions:
        return None
    first = tuple(x[..., -S:, -S:] for x in result.prompt_states.attentions)
    start = result.prompt_states.attentions[0].shape[-1] - S
    rest = (
        tuple(x[i, ..., start : start + S + i + 1] for x in result.states.attentions)
        for i in range(steps - 1)
    )
    return (first, *rest)
