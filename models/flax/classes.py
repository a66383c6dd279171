"""``FlaxOPTModel`` and ``FlaxOPTForCausalLM``: Flax models over ``model.py``.

They give the documented call surface; the modules that they run are in ``modules.py``,
what they share in ``base.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..outputs import (
    FlaxBaseModelOutput,
    FlaxBeamSearchOutput,
    FlaxCausalLMOutput,
    FlaxGreedySearchOutput,
    FlaxSampleOutput,
)
from .base import FlaxOPTBase
from .checks import check_inputs
from .generation import Generation
from .modules import FlaxOPTForCausalLMModule, FlaxOPTModule, OPTModule
from .params import plain

_OPTIONS = ("output_attentions", "output_hidden_states", "return_dict")


@partial(jax.jit, static_argnums=0, static_argnames=(*_OPTIONS, "deterministic"))
def _run(module: OPTModule, variables, ids, mask, positions, rng, **options):
    """The compiled forward pass: output and the updated cache, if one came in."""
    return module.apply(
        variables,
        ids,
        mask,
        positions,
        rngs=None if rng is None else {"dropout": rng},
        mutable=["cache"] if "cache" in variables else [],
        **options,
    )


class _FlaxOPT(FlaxOPTBase):
    """The call that both classes have."""

    def __call__(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        params: Mapping[str, Any] | None = None,
        past_key_values: Mapping[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        dropout_rng=None,
        deterministic: bool = True,
    ):
        """Outputs for ``input_ids`` (B, S), compiled on first use of a shape.

        ``attention_mask`` (B, S): 0 is padding. With ``past_key_values`` (from
        :meth:`init_cache` or the output before) it has the cache's full length and
        ``position_ids`` (B, S) are needed. ``params`` replace the model's own.
        Dropout needs ``deterministic=False`` and a ``dropout_rng``. Raises ValueError
        for shapes, ids and positions out of range (inside ``jax.jit``, when it runs).
        """
        module = self.module
        config = module.config
        ids, mask, positions = check_inputs(
            config, input_ids, attention_mask, position_ids, past_key_values
        )
        if not config.has_dropout:
            deterministic = True
        if not deterministic and dropout_rng is None:
            raise ValueError("deterministic=False needs a dropout_rng")
        variables = {"params": plain(params or self.params)}
        if past_key_values is not None:
            variables["cache"] = dict(past_key_values)
        asked = (output_attentions, output_hidden_states, return_dict)
        options = {
            name: getattr(config, name) if value is None else value
            for name, value in zip(_OPTIONS, asked, strict=True)
        }
        as_dict = options.pop("return_dict")
        output, changed = _run(
            module,
            variables,
            ids,
            mask,
            positions,
            None if deterministic else dropout_rng,
            deterministic=deterministic,
            **options,
        )
        if past_key_values is not None:
            output["past_key_values"] = plain(changed["cache"])
        if as_dict:
            return output
        head, *rest = output.to_tuple()
        if past_key_values is not None:  # last of the fields, second of the tuple
            rest = [rest.pop(), *rest]
        return (head, *rest)


class FlaxOPTModel(_FlaxOPT):
    """The decoder without a head: ``last_hidden_state``."""

    module_class = FlaxOPTModule


class FlaxOPTForCausalLM(Generation, _FlaxOPT):
    """The decoder with its head: ``logits``."""

    module_class = FlaxOPTForCausalLMModule

    def prepare_inputs_for_generation(
        self, input_ids, max_length: int, attention_mask=None
    ) -> dict[str, Any]:
        """What a decoding loop's first call takes beside ``input_ids`` (B, S).

        An empty cache for ``max_length`` tokens, a mask of that length and positions;
        ``attention_mask`` (B, S) marks padding.
        """
        B, S = input_ids.shape
        mask = jnp.ones([B, S], jnp.int32)
        if attention_mask is not None:
            mask = jnp.asarray(attention_mask).astype(jnp.int32)
        return {
            "past_key_values": self.init_cache(B, max_length),
            "attention_mask": jnp.pad(
                mask, [(0, 0), (0, max_length - S)], constant_values=1
            ),
            "position_ids": jnp.cumsum(mask, axis=1) - 1,
        }

    def update_inputs_for_generation(
        self, model_outputs, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """``model_kwargs`` for the next token, after the call that gave the outputs."""
        model_kwargs["past_key_values"] = model_outputs.past_key_values
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        return model_kwargs


for _output in (
    FlaxBaseModelOutput,
    FlaxCausalLMOutput,
    FlaxGreedySearchOutput,
    FlaxSampleOutput,
    FlaxBeamSearchOutput,
):
    jax.tree_util.register_pytree_with_keys(
        _output,
        lambda output: (
            [(jax.tree_util.DictKey(key), value) for key, value in output.items()],
            tuple(output),
        ),
        lambda keys, values, cls=_output: cls(zip(keys, values, strict=True)),
    )
